"""The planner needs no torch.fx: a front end of a few dictionaries plans a fold through a pool, and applies it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

import bnfold
from bnfold import ops
from bnfold.affine import affine_of_statistics
from bnfold.fold.plan import Plan, make_plan
from bnfold.ops.interface import FrontEnd
from bnfold.ops.symbolic import Size, number
from tests.fold.support import ALGEBRA, error_of_peak, values

ROOT = Path(bnfold.__file__).parent


class Slot:
    """A value: one entry of a list of dictionaries."""

    def __init__(self, name: str, **what: Any) -> None:
        self.name = name
        self.what = what


class Listed(FrontEnd[Slot]):
    """A graph that is a list of dictionaries, in which each entry reads those that it names."""

    def __init__(self, entries: list[dict[str, Any]], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors
        self.by_name = {entry["name"]: Slot(**entry) for entry in entries}
        self.index = {slot: place for place, slot in enumerate(self.by_name.values())}
        self.known = dict(self._read())

    def _read(self) -> Iterator[tuple[Slot, ops.Operation]]:
        for slot in self.index:
            read = self.inputs(slot)
            if slot.what["kind"] == "conv":
                bias = "bias" if "bias" in self.tensors else None
                yield slot, ops.Convolution(slot, *read, "weight", bias, 2, 1, slot.what.get("pad", 0), 1, 1)
            elif slot.what["kind"] == "max":
                yield slot, ops.MaxPool(slot, *read, 2)
            elif slot.what["kind"] == "mean":
                yield slot, ops.AveragePool(slot, *read, 2, None, 2)
            elif slot.what["kind"] == "bn":
                yield slot, ops.BatchNorm(slot, *read, "mean", "var", "gamma", "beta", 1e-5, False, slot.name)

    def call(self, value: Slot) -> ops.Operation | None:
        return self.known.get(value)

    def readers(self, value: Slot) -> tuple[Slot, ...]:
        return self.users(value)

    def users(self, value: Slot) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.index if value in self.inputs(slot))

    def inputs(self, value: Slot) -> tuple[Slot, ...]:
        return tuple(self.by_name[name] for name in value.what.get("reads", ()))

    def is_input(self, value: Slot) -> bool:
        return bool(value.what["kind"] == "input")

    def is_output(self, value: Slot) -> bool:
        return bool(value.what["kind"] == "output")

    def name(self, value: Slot) -> str:
        return value.name

    def shapes(self, value: Slot) -> tuple[tuple[int, ...], ...]:
        return ()

    def sizes(self, value: Slot) -> tuple[Size, ...] | None:
        unknown = [Size.unknown((value, dim)) for dim in (0, 2, 3)]
        return (unknown[0], number(self.tensors["weight"].shape[0]), *unknown[1:])

    def rank(self, value: Slot) -> int | None:
        return 4

    def graph_rank(self, value: Slot) -> int | None:
        return 4

    def channels(self, value: Slot, dim: int) -> int | None:
        return self.channels_by_layers(value) if dim == 1 else None

    def tensor(self, source: Any) -> Tensor | None:
        return self.tensors.get(source)

    def constant(self, source: Any) -> Tensor | None:
        return self.tensors.get(source)

    def shape_of(self, source: Any) -> tuple[int, ...] | None:
        tensor = self.tensor(source)
        return None if tensor is None else tuple(tensor.shape)

    def is_constant(self, value: Slot) -> bool:
        return False

    def sharing(self, source: Any) -> list[Slot]:
        return [slot for slot, call in self.known.items() if source in (getattr(call, "weight", None),)]

    def run(self, x: Tensor, plan: Plan | None = None) -> Tensor:
        """Compute the graph, folded if there is a plan: the rewriter of this front end."""
        weights = {"weight": self.tensors["weight"], "bias": self.tensors.get("bias")}
        for name, absorptions in plan.steps.absorbed.items() if plan is not None else ():
            call: Any = self.known[self.by_name[name]]
            for step in absorptions:
                absorb = call.absorb_after if step.side == "after" else call.absorb_before
                weights["weight"], weights["bias"] = absorb((weights["weight"], weights["bias"]), step.affine)
        found: dict[Slot, Tensor] = {}
        removed = () if plan is None else plan.steps.removed
        for slot in self.index:
            kind, read = slot.what["kind"], [found[part] for part in self.inputs(slot)]
            if kind == "input":
                found[slot] = x
            elif kind == "conv":
                found[slot] = F.conv2d(read[0], weights["weight"], weights["bias"], padding=slot.what.get("pad", 0))
            elif kind in ("max", "mean"):
                found[slot] = (F.max_pool2d if kind == "max" else F.avg_pool2d)(read[0], 2)
            elif kind == "bn" and slot.name not in removed:
                mean, variance, gamma, beta = (self.tensors[key] for key in ("mean", "var", "gamma", "beta"))
                found[slot] = affine_of_statistics(mean, variance, gamma, beta, 1e-5)(read[0])
            else:
                found[slot] = read[0]
        return found[next(reversed(self.index))]


def listed(*kinds: str, negative: bool = False, **settings: Any) -> Listed:
    """A chain of operations, of random weights and statistics."""
    entries: list[dict[str, Any]] = [{"name": "x", "kind": "input"}]
    for place, kind in enumerate((*kinds, "output")):
        entries.append({"name": f"{kind}{place}", "kind": kind, "reads": [entries[-1]["name"]], **settings})
    gamma = values(4, seed=3) if negative else values(4, seed=3).abs() + 0.1
    statistics = {"mean": values(4, seed=1), "var": values(4, seed=2).abs() + 0.1, "gamma": gamma}
    weight = values(4, 4, 3, 3, seed=5)
    return Listed(entries, {**statistics, "beta": values(4, seed=4), "weight": weight, "bias": values(4, seed=6)})


@pytest.mark.parametrize(
    ("kinds", "direction"),
    [(("conv", "max", "bn"), "backward"), (("conv", "mean", "bn"), "backward"), (("bn", "max", "conv"), "forward")],
)
def test_a_graph_of_dictionaries_folds_through_a_pool(kinds: tuple[str, ...], direction: str) -> None:
    graph = listed(*kinds)
    plan = make_plan(graph)
    (decision,) = plan
    assert (decision.action, decision.direction) == ("fold", direction), decision.detail
    assert [name[:-1] for name in (*decision.into, *decision.through)] == ["conv", kinds[1]]
    x = values(2, 4, 12, 12)
    assert error_of_peak(graph.run(x), graph.run(x, plan)) <= ALGEBRA


def test_the_conditions_are_asked_of_a_graph_of_dictionaries_too() -> None:
    (decision,) = make_plan(listed("conv", "max", "bn", negative=True))
    assert (decision.action, decision.reason) == ("affine", "negative-scale")
    assert "1 of 4 scales is negative and max pooling `max1` stands before it" in decision.detail
    (decision,) = make_plan(listed("bn", "conv", pad=1))
    assert decision.action == "affine"
    assert "and forward, all 4 shifts are not zero and convolution `conv1` pads with zeros" in decision.detail


def test_a_batchnorm_at_the_input_has_no_producer() -> None:
    (decision,) = make_plan(listed("bn"))
    assert decision.reason == "no-producer"


DECIDING = [
    *("plan", "pull", "push", "sideways", "terms", "settled", "rules", "decision"),
    *("merge.planner", "merge.found", "merge.sums", "merge.geometry", "merge.branches", "merge.kernels", "merge.steps"),
]


def imported(module: str, seen: dict[str, set[str]]) -> None:
    """Note what a module of the package imports, and what those of the package do that it imports."""
    if module in seen or not module.startswith("bnfold"):
        return
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    found: set[str] = set()
    tree = ast.parse(Path(spec.origin).read_text())
    asides = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {part for aside in asides for part in ast.walk(aside)}  # what only a type checker reads
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            inside = (ROOT.parent / node.module.replace(".", "/")).is_dir()
            found |= {f"{node.module}.{name.name}" for name in node.names if inside and _is_module(node.module, name)}
    seen[module] = found
    for name in found:
        imported(name, seen)


def _is_module(package: str, name: ast.alias) -> bool:
    return (ROOT.parent / package.replace(".", "/") / f"{name.name}.py").exists()


@pytest.mark.parametrize("name", DECIDING)
def test_the_deciding_part_imports_no_front_end(name: str) -> None:
    seen: dict[str, set[str]] = {}
    imported(f"bnfold.fold.{name}", seen)
    reached = {each for found in seen.values() for each in found}
    assert not {each for each in reached if each.startswith(("torch.fx", "bnfold.graph", "bnfold.capture"))}
    assert any(each.startswith("torch") for each in reached) or name in ("decision", "merge.steps")
