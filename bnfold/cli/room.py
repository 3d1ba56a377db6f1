"""How much memory a fold will about need, and whether there is as much: known before it starts.

For weights of B bytes, as measured (benchmarks/results/memory.md): B for the original, which may be pages of a mapped
file, and B for the fold; in the proof one layer at a time in float64; with an .onnx B for ONNX Runtime, or 4 B where
the weights stand inside of the file. What lies between the layers comes from the shapes that the capture recorded: what
is alive at a time in float64, with the columns that a convolution makes of its input there; and all of it once in the
model's own precision, for the gradients that show whether each BatchNorm reaches the output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bnfold.files.formats import APART

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node

    from bnfold.graph.captured import Capture

__all__ = ["GIB", "OnnxWork", "Work", "gib", "machine_memory", "sentence_on_room"]

GIB = 1 << 30
BASE = 45 * GIB // 100
"""Bytes that a process holds with a model of no size: torch, ONNX Runtime, and what they compute with."""

LARGEST_BATCH = 3
"""Of the inputs that a proof draws."""


@dataclass(frozen=True)
class Work:
    """What is to be done, by its sizes in bytes.

    Attributes:
        weights: of the model.
        layer: the largest tensor among them, in float64.
        alive: the most that lies between layers at a time, in float64, for one example of the batch.
        total: all that lies between layers, in the model's precision, for one example.
        batch: examples in the inputs.
        kinds: suffixes of the models to be written.
        proof: whether the fold is proved.
    """

    weights: int
    layer: int = 0
    alive: int = 0
    total: int = 0
    batch: int = 1
    kinds: frozenset[str] = frozenset({".onnx", ".pt2"})
    proof: bool = True

    @staticmethod
    def of(model: nn.Module, kinds: Collection[str], *, proof: bool) -> Work:
        """Return what is known of a model before it is captured."""
        from torch.nn.parameter import is_lazy

        every = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
        held = [tensor for tensor in every if not is_lazy(tensor)]
        layer = 8 * max((tensor.numel() for tensor in held), default=0)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
        return Work(weights, layer, kinds=frozenset(kinds), proof=proof)

    def with_values(self, capture: Capture, inputs: tuple[Any, ...]) -> Work:
        """Return the same with what lies between the layers, where the capture has recorded it."""
        if not capture.shapes:
            return self
        sizes = {node: prod(shape) for node, shape in capture.shapes[0].items()}
        batch = max((value.shape[0] for value in inputs if getattr(value, "ndim", 0)), default=1) or 1
        columns = {node: _columns(capture, node, sizes) for node in sizes}
        alive, total = 8 * most_alive(sizes, columns), 4 * sum(sizes.values())
        return replace(self, alive=alive // batch, total=total // batch, batch=batch)

    @property
    def bytes_needed(self) -> int:
        """About how many bytes are held at the most."""
        inside = ".onnx" in self.kinds and self.weights <= APART
        export = (2 * self.weights if ".pt2" in self.kinds else 0) + (self.weights if inside else 0)
        if not self.proof:
            return BASE + 2 * self.weights + export
        session = 4 * self.weights if inside else self.weights if ".onnx" in self.kinds else 0
        values = max(self.alive * max(self.batch, LARGEST_BATCH), self.total)
        return BASE + 2 * self.weights + max(export, session, 3 * self.layer) + values


@dataclass(frozen=True)
class OnnxWork(Work):
    """The same for a model that is an .onnx file, as measured (benchmarks/results/memory.md).

    Attributes:
        apart: whether its weights lie in a file beside it, which is mapped.
    """

    kinds: frozenset[str] = frozenset()
    apart: bool = False

    @property
    def bytes_needed(self) -> int:
        """About how many bytes are held at the most, for small images."""
        if not self.proof:
            return BASE + (2 if self.apart else 3) * self.weights
        return BASE + (13 if self.apart else 25) * self.weights // 4


def _columns(capture: Capture, node: Node, sizes: Mapping[Node, int]) -> int:
    """Return how many numbers a convolution makes of its input in float64: each as often as the kernel reads it."""
    layer: Any = capture.module(str(node.target)) if node.op == "call_module" else None
    kernel, stride = getattr(layer, "kernel_size", None), getattr(layer, "stride", None)
    if (
        not isinstance(kernel, tuple)
        or not isinstance(stride, tuple)
        or prod(kernel) == 1
        or not hasattr(layer, "weight")
    ):
        return 0
    return sum(sizes.get(value, 0) for value in node.all_input_nodes) * prod(kernel) // prod(stride)


def most_alive(sizes: Mapping[Node, int], besides: Mapping[Node, int]) -> int:
    """Return the most numbers that are alive at a time while a graph runs, each until its last reader has run.

    Args:
        sizes: of the values, in the order in which they are computed.
        besides: what else a node holds while it runs.
    """
    order = {node: place for place, node in enumerate(sizes)}
    last = {node: max((order[user] for user in node.users if user in order), default=order[node]) for node in sizes}
    ends: dict[int, int] = {}
    for node, place in last.items():
        ends[place] = ends.get(place, 0) + sizes[node]
    most = now = 0
    for node, place in order.items():
        now += sizes[node]
        most = max(most, now + besides[node])
        now -= ends.get(place, 0)
    return most


def machine_memory() -> int:
    """Return the bytes of memory that this machine, or the container in it, has to spare now, but for a part."""
    spare = min([psutil.virtual_memory().available, *spare_of_groups()])
    return max(int(spare * 0.92), GIB // 4)


def spare_of_groups(tree: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield what each control group that this process is in may still use, in bytes; nothing of those without a limit.

    A group's use counts the pages of files that were read; those which nobody needs now the system takes back.

    Args:
        tree: where the groups are mounted, of version 1 or 2.
        own: names those of this process. In a container it may name what is not mounted there: then the top one counts.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            top, limit, used, cached = tree, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            top, cached = tree / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for place in (group, *group.parents):
            if place == top.parent:
                break
            with contextlib.suppress(OSError, ValueError):  # not mounted here, or "max"
                most, now = (int((place / name).read_text(encoding="ascii")) for name in (limit, used))
                counts = dict(row.split() for row in (place / "memory.stat").read_text(encoding="ascii").splitlines())
                yield most - now + int(counts.get(cached, 0))


def sentence_on_room(work: Work) -> str | None:
    """Return a sentence where a fold needs more memory than there is, and which option needs less; else None."""
    needed = work.bytes_needed
    there = machine_memory() + psutil.Process().memory_info().rss
    if needed <= there:
        return None
    ways: list[tuple[str, Work]] = []
    if work.batch > 1 and work.proof:
        ways.append(("a smaller batch in --input-shape", replace(work, batch=1)))
    if not work.kinds <= {".safetensors"}:
        ways.append(("-o NAME.safetensors alone", replace(work, kinds=frozenset({".safetensors"}))))
    if work.proof:
        ways.append(("--no-verify", replace(work, proof=False)))
    less = [f"{way} needs {gib(other.bytes_needed)}" for way, other in ways if other.bytes_needed < 0.95 * needed]
    told = f" Of what needs less, {', '.join(less)}." if less else ""
    return f"This fold needs about {gib(needed)} of memory, and there are {gib(there)}: the system may end it.{told}"


def gib(size: float) -> str:
    """Return a size in GiB."""
    return f"{size / GIB:.1f} GiB"
