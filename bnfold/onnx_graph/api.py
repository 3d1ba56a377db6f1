"""``bnfold.fold_onnx``: read, plan, rewrite."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.errors import NotFiniteError, UnknownNameError
from bnfold.fold.decision import Decision
from bnfold.fold.merge.after_folds import AfterFolds
from bnfold.fold.merge.planner import with_merges
from bnfold.fold.plan import Plan, Steps, make_plan
from bnfold.onnx_graph.constants import Constants
from bnfold.onnx_graph.facts import OnnxFacts
from bnfold.onnx_graph.inference import InferredShapes, NamedShapes, inferred
from bnfold.onnx_graph.prepare import OnnxModel, prepared, version_of
from bnfold.onnx_graph.rewrite import Names, rewrite
from bnfold.ops.refusal import Refusal

__all__ = ["OnnxFolding", "fold_onnx", "plan_onnx", "unknown_name"]


_LARGE_LAYER = 1 << 20
"""From so many bytes in float32 on a weight of a large model is computed each time in float64, and not held."""


@dataclass(frozen=True, eq=False)
class OnnxFolding:
    """What :func:`fold_onnx` returns.

    Attributes:
        model: the folded model, of the kind that was given; an ``onnx_ir.Model`` for a path.
        plan: one decision for each BatchNormalization, and for each affine by constants.
        source: what was given, made ready to be read, and not changed since.
        seconds: how long each step took: ``"read"``, ``"plan"`` and ``"rewrite"``, in wall time.
    """

    model: Any
    plan: Plan
    given: OnnxModel = field(repr=False)
    source: ir.Model = field(repr=False)
    shapes: NamedShapes = field(repr=False)
    freeze_inputs: bool = field(default=False, repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model, whole or not at all; with its weights beside it where they were, or where it is too large.

        Raises:
            FileAccessError: the file exists and ``force`` is not given, or it cannot be written.
        """
        from bnfold.files.onnx_file import write_onnx

        write_onnx(self.model, Path(path), force=force, inputs=[self.given] if isinstance(self.given, Path) else [])

    def facts_before(self) -> list[OnnxFacts]:
        """Return the facts of each graph as it was: the model's own, and those inside of nodes."""
        model = prepared(self.source, freeze=self.freeze_inputs)
        return _Reading(model, frozen=self.freeze_inputs, shapes=self.shapes).facts

    def facts_after(self) -> list[OnnxFacts]:
        """Return the facts of each graph as it became."""
        return _Reading(prepared(self.model, freeze=False), frozen=self.freeze_inputs).facts

    def in_float64(self) -> tuple[ir.Model, ir.Model]:
        """Return the original and the folded model, both in float64 throughout.

        The same plan is applied to a float64 copy of the model, so that the two differ by nothing but the fold. A
        weight of a large model is computed each time that it is asked for.
        """
        from bnfold.verify.onnx_double import in_double

        return in_double(prepared(self.source, freeze=self.freeze_inputs)), self.folded_in_float64()

    def folded_in_float64(self) -> ir.Model:
        """Return the second of :meth:`in_float64` alone."""
        from bnfold.verify.onnx_double import in_double, is_held

        model = prepared(self.source, freeze=self.freeze_inputs)
        folded = in_double(model)
        reading = _Reading(folded, frozen=self.freeze_inputs, shapes=self.shapes)
        _rewritten(reading, self.plan, large=None if is_held(model) else _LARGE_LAYER)
        return folded


def plan_onnx(
    model: OnnxModel | str, *, keep: Iterable[str] = (), merge: bool = False, freeze_inputs: bool = False
) -> Plan:
    """Decide what becomes of each BatchNormalization and affine, and change nothing; see :func:`fold_onnx`."""
    return fold_onnx(model, keep=keep, merge=merge, freeze_inputs=freeze_inputs).plan


def fold_onnx(
    model: OnnxModel | str, *, keep: Iterable[str] = (), merge: bool = False, freeze_inputs: bool = False
) -> OnnxFolding:
    """Fold the BatchNormalizations of an ONNX model, and its affines by constants, wherever that is exact.

    Args:
        model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; not changed.
        keep: names of nodes to leave as they are; with ``merge``, also of convolutions to leave apart.
        merge: also merge convolutions of one input whose outputs are only added, and a convolution with a 1x1 one right
            before or after it, where that saves multiplications.
        freeze_inputs: take initializers that are inputs too for constants, and no longer for inputs. In models of
            before IR version 4 all of them are: whoever runs the model may give others.

    Returns:
        The folded model, and the plan.

    Raises:
        RefusedFileError: it is no ONNX model that could be read, or of an opset before 7.
        UnknownNameError: ``keep`` names no node that is a BatchNormalization or an affine.
    """
    names = frozenset((keep,) if isinstance(keep, str) else keep)
    given: OnnxModel = Path(model) if isinstance(model, str) else model
    begin = time.perf_counter()
    source = prepared(given, freeze=False)
    working = prepared(source, freeze=freeze_inputs)
    reading = _Reading(working, frozen=freeze_inputs)
    seconds = {"read": time.perf_counter() - begin}
    refused: dict[str, Refusal] = {}
    while True:
        start = time.perf_counter()
        plan = _planned(reading, names, refused, merge=merge)
        seconds["plan"] = seconds.get("plan", 0.0) + time.perf_counter() - start
        start = time.perf_counter()
        try:
            _rewritten(reading, plan)
            break
        except NotFiniteError as error:
            refused.update(_refused(plan, error, refused))
            working = prepared(source, freeze=freeze_inputs)
            reading = _Reading(working, frozen=freeze_inputs)
    _require_names(plan, names)
    notes = reading.notes()
    plan = replace(plan, notes=(*plan.notes, *notes))
    if (working.ir_version or 4) < 4 and _has_own_initializers(working):
        working.ir_version = 4
    seconds["rewrite"] = time.perf_counter() - start
    result = ir.to_proto(working) if isinstance(given, onnx.ModelProto) else working
    return OnnxFolding(result, plan, given, source, reading.named, freeze_inputs, seconds)


class _Reading:
    """A model as the planner sees it: the facts of each of its graphs."""

    def __init__(self, model: ir.Model, *, frozen: bool, shapes: NamedShapes | None = None) -> None:
        self.model = model
        graphs = list(_graphs(model.graph))
        self.shapes = inferred(model) if shapes is None else InferredShapes.of_copy(graphs, shapes)
        self.constants = Constants(self.shapes, frozen=frozen)
        self.named = self.shapes.by_name(graphs)
        self.version = version_of(model)
        for graph in graphs:
            self.constants.note_initializers(graph)
        for node in _nodes(model.graph):
            self.constants.note(node, self.version)
        self.facts = [
            OnnxFacts(graph, self.constants, self.shapes, self.version, inside=graph is not model.graph)
            for graph in graphs
        ]

    def notes(self) -> tuple[str, ...]:
        """Return what is to be said about the model."""
        many = len(self.constants.overridable)
        if not many:
            return ()
        which = "1 initializer is an input" if many == 1 else f"{many} initializers are inputs"
        return (
            f"{which} too, which whoever runs the model may override: what reads them stays as it is, unless "
            "--freeze-inputs (freeze_inputs=True) makes constants of them.",
        )


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield a graph and those inside of its nodes, in order."""
    yield graph
    for node in graph:
        for inner in _bodies(node):
            yield from _graphs(inner)


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        for inner in _bodies(node):
            yield from _nodes(inner)
        yield node


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [
        attribute.as_graph()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref()
    ]


def _planned(reading: _Reading, keep: frozenset[str], refused: Mapping[str, Refusal], *, merge: bool) -> Plan:
    """Return one plan for all graphs: that of the model's own, with those inside of nodes as its pieces."""
    plans: list[Plan] = []
    for facts in reading.facts:
        own = dict(refused)
        plan = make_plan(facts, keep=keep, refused=own)
        while plan.steps.guards:  # a check when it runs, which ONNX has not
            text = "the number of dimensions before it is not known"
            new = {d.site for d in plan if d.action == "fold"} - own.keys()
            own.update({site: Refusal("shapes-unknown", text) for site in new})
            plan = make_plan(facts, keep=keep, refused=own)
            if not new:
                break
        if plan.steps.guards:
            plan = replace(plan, steps=Steps())
        if merge:
            folded = AfterFolds(facts, plan.steps)
            plan = with_merges(plan, folded, facts, keep=keep, share="clone", refused=refused)
        plans.append(plan)
    decisions: tuple[Decision, ...] = tuple(decision for plan in plans for decision in plan)
    merges = tuple(decision for plan in plans for decision in plan.merges)
    pieces = {str(number): plan for number, plan in enumerate(plans)}
    return Plan(decisions, "onnx", plans[0].notes, merges, steps=Steps(), pieces=pieces)


def _rewritten(reading: _Reading, plan: Plan, *, large: int | None = None) -> None:
    names = Names(reading.model)
    for facts, own in zip(reading.facts, plan.pieces.values(), strict=True):
        rewrite(facts, own, names, large=large)


def _refused(plan: Plan, error: NotFiniteError, before: Mapping[str, Refusal]) -> dict[str, Refusal]:
    """Return the sites whose affines make a weight overflow.

    Raises:
        NotFiniteError: they are refused already.
    """
    name = error.node  # type: ignore[attr-defined]
    sites = {
        own[absorption.batchnorm].site
        for own in plan.pieces.values()
        for absorption in own.steps.absorbed.get(name, ())
    }
    if any(step.root == name for own in plan.pieces.values() for step in own.steps.merges):
        sites = {name}
    new = sites - before.keys()
    if not new:
        raise error
    words = error.what.rstrip(".")
    return {site: Refusal("weight-not-finite", "{what}", what=words[0].lower() + words[1:]) for site in new}


def _require_names(plan: Plan, keep: frozenset[str]) -> None:
    known = {name for decision in plan for name in (decision.batchnorm, decision.site)}
    known |= {merge.into for merge in plan.merges}
    for name in sorted(keep - known):
        raise unknown_name(name, plan)


def unknown_name(name: str, plan: Plan) -> UnknownNameError:
    """Return the error for a name that no site has; close ones are named."""
    close = difflib.get_close_matches(name, [decision.batchnorm for decision in plan], n=3, cutoff=0.4)
    fix = f"Did you mean {', '.join(close)}?" if close else "See the names with `bnfold explain`."
    return UnknownNameError(f"No BatchNormalization of the model is called `{name}`.", fix=fix)


def _has_own_initializers(model: ir.Model) -> bool:
    inputs = set(model.graph.inputs)
    return any(value not in inputs for value in model.graph.initializers.values())
