"""Fold one model of the zoo, compare, and say what happened as one flat record.

A record's ``outcome`` is one of

===================  ==================================================================================================
``equivalent``       folded and original agree in float64 to 1e-9 of the peak of every output
``wrong``            they do not, or the fold changed the model it was given
``incomplete``       they do, but BatchNorms are left in the folded model that the plan does not keep
``inexact``          they do, and the float32 fold is much further from float64 than the original's own float32 error
``capture-failed``   bnfold said that it cannot capture the graph
``refused``          bnfold raised another of its own errors
``crash``            anything else was raised by bnfold, or by the folded model
``build-failed``     the library could not build or run the model: says nothing about bnfold
``timeout``          it took too long (written by ``bnfold.batch``)
``memory``           it took too much memory (written by ``bnfold.batch``)
``died``             its process died (written by ``bnfold.batch``)
===================  ==================================================================================================

``batch_free`` says whether the folded model ran on another batch than the example's, ``size_free`` whether it did at
another height and width (null where the model itself does not). A fold that says that it was captured for one size only
is no failure; one that computes something else there is wrong.
"""

from __future__ import annotations

import copy
import math
import time
import traceback
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.zoo_beside import export_seconds, export_to_onnx, fuse
from benchmarks.zoo_build import Subject, build, fresh_inputs
from benchmarks.zoo_list import Entry
from benchmarks.zoo_measure import (
    Stage,
    Throughout64,
    call,
    count_batch_norm_calls,
    distance,
    in_double,
    message,
    since,
    unseen,
)
from bnfold import Plan, __version__
from bnfold.errors import BnfoldError, CaptureError
from bnfold.fold import api

__all__ = ["TOLERANCE", "check", "examine"]

TOLERANCE = 1e-9
ROUNDING_FACTOR = 20.0  # how many times the original's own float32 error the fold's may be
ROUNDING_FLOOR = 1e-5  # of the peak: an error below this is never called inexact
NUDGE, NUDGES = 1e-15, 30  # of the inputs in float64, and how many times what it does a fold may be off at another size
NAMES_KEPT = 8
EXAMPLE_BATCH = 2  # another than is compared: a fold holds for any
TOO_LARGE_FOR_FUSE = 6e8  # parameters
LARGER = (128, 224)  # input sizes to try next where some BatchNorms are not seen
OTHER_INPUT = (BnfoldError, ValueError)  # what a folded model raises at a size that it was not captured for
Record = dict[str, Any]


def check(entry: Entry, *, seed: int = 0, export: bool = False, merge: bool = False) -> Record:
    """Build a model, fold it and compare; whatever happens ends in the record, never in an exception.

    Where the comparison cannot see some of the BatchNorms (an attention over a single position does not care what is
    attended to), a larger input is tried.
    """
    record = _check(entry, seed, export, merge, at_least=0)
    for size in () if entry.builder else LARGER:
        if record["outcome"] != "equivalent" or not record["unseen"] or record["shape"][-1] >= size:
            continue
        larger = _check(entry, seed, export, merge, at_least=size)
        if larger["outcome"] == "equivalent" and len(larger["unseen"] or ()) >= len(record["unseen"]):
            break
        record = larger
    return record


def _check(entry: Entry, seed: int, export: bool, merge: bool, *, at_least: int) -> Record:
    start = time.perf_counter()
    record: Record = {
        "model": entry.model,
        "library": entry.library,
        "family": entry.family,
        "parameters": entry.parameters,
        "batchnorms": entry.batchnorms,
        "seed": seed,
        "versions": {"torch": torch.__version__, "bnfold": __version__},
        "seconds": {},
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject = build(entry, seed=seed, at_least=at_least)
    except Exception as error:
        _failed(record, "build-failed", "build", error)
    else:
        record["shape"], record["damping"] = list(subject.shape), subject.damping
        record["images"] = subject.images
        record["seconds"]["build"] = since(start)
        examine(subject, record, export=export, merge=merge)
    record["seconds"]["total"] = since(start)
    return record


def examine(subject: Subject, record: Record, *, export: bool = False, merge: bool = False) -> None:
    """Fold a model and compare; fill in the record."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # models, exporters and fx.fuse's module warn of much that is no concern here
        _stages(subject, record, export, merge)


def _stages(subject: Subject, record: Record, export: bool, merge: bool) -> None:
    stage = Stage(record.setdefault("stages", {}))
    stage.enter("run")
    try:
        _examine(subject, record, stage, export, merge)
    except CaptureError as error:
        _failed(record, "capture-failed", stage.name, error)
    except BnfoldError as error:
        _failed(record, "refused", stage.name, error)
    except Exception as error:
        _failed(record, "crash" if stage.name not in ("run", "oracle") else "build-failed", stage.name, error)
    stage.enter("fuse")
    record["fuse"] = _fuse(subject)
    stage.enter("torch.export")
    record["export_seconds"] = export_seconds(subject.model, _example(subject))
    stage.enter("")


def _fuse(subject: Subject) -> Record:
    if subject.entry.parameters >= TOO_LARGE_FOR_FUSE:
        return {"takes": None, "message": "not tried: it would hold several copies of the model in float64"}
    try:
        return fuse(subject, TOLERANCE)
    except Exception as error:
        return {"takes": False, "message": message(error)}


def _examine(subject: Subject, record: Record, stage: Stage, export: bool, merge: bool) -> None:
    model = subject.model
    inputs = fresh_inputs(subject.entry, subject.shape, batch=subject.images, seed=subject.seed + 11)
    before = call(model, inputs)

    stage.enter("fold")
    folding = _fold(subject, record, merge)
    folded = folding.module
    record |= _decisions(folding.plan, merge)
    record["left"] = count_batch_norm_calls(folded)

    stage.enter("run folded")
    try:
        after = call(folded, inputs)
        record["batch_free"] = True
    except OTHER_INPUT as error:
        record["batch_free"], record["batch_message"] = False, message(error)
        inputs = fresh_inputs(subject.entry, subject.shape, batch=EXAMPLE_BATCH, seed=subject.seed + 11)
        before, after = call(model, inputs), call(folded, inputs)
    if distance(before, call(model, inputs)) != 0.0 or any(module.training for module in model.modules()):
        record["outcome"], record["message"] = "wrong", "the fold changed the model it was given"
        return

    stage.enter("other size")
    elsewhere, record["size_free"] = _elsewhere(subject, folded, record)
    if export:
        stage.enter("export")
        record["export"] = export_to_onnx(folded, inputs)

    stage.enter("float64")
    del folded
    folding = replace(folding, module=nn.Identity())  # a model of a billion weights wants to be held few times
    double = in_double(inputs)
    expected, computed = _plainly(folding, double, record)
    stage.enter("oracle")
    oracle = _oracle(model, double, record)
    if not max(distance(expected, computed), distance(oracle or expected, expected)) <= TOLERANCE:
        stage.enter("float64 throughout")
        with Throughout64():
            expected, computed = (call(graph, double) for graph in folding.in_float64())
    if oracle is not None and not distance(oracle, computed) <= TOLERANCE:
        call(model, inputs)  # computes in float32 what it keeps for one size, as RT-DETR its anchors: as good an oracle
        oracle = min(oracle, _oracle(model, double, record) or oracle, key=lambda other: distance(other, computed))
    oracle = oracle or expected
    record["error"] = {
        "algebra": distance(expected, computed),
        "capture": distance(oracle, expected),
        "float64": distance(oracle, computed),
        "original32": distance(oracle, before),
        "folded32": distance(oracle, after),
    }
    if elsewhere is not None:
        with Throughout64():
            double_model, (_, graph) = copy.deepcopy(model).double(), folding.in_float64()
            answer = call(double_model, elsewhere)
            record["error"]["other_size"] = distance(answer, call(graph, elsewhere))
            if record["error"]["other_size"] > TOLERANCE:  # the model was made steady at its own size alone
                record["error"]["other_size_nudge"] = distance(answer, call(double_model, _nudged(elsewhere)))
    _judge(record)
    stage.enter("unseen")
    record["unseen"] = _unseen(model, double, subject.seed)


def _decisions(plan: Plan, merge: bool) -> Record:
    decisions: Record = {
        "capture": plan.capture,
        "calls": len(plan),
        "actions": plan.summary,
        "directions": dict(Counter(d.direction for d in plan if d.action == "fold")),
        "reasons": dict(Counter(d.reason for d in plan if d.action == "affine")),
        "kept": dict(Counter(d.reason for d in plan if d.action == "keep")),
        "unfolded": [[d.batchnorm, d.action, d.reason, d.detail] for d in plan if d.reason][:NAMES_KEPT],
        "added_bytes": sum(d.added_bytes for d in plan),
    }
    return decisions | {"merges": dict(Counter(m.reason or m.kind for m in plan.merges))} if merge else decisions


def _example(subject: Subject) -> tuple[Any, ...]:
    return fresh_inputs(subject.entry, subject.shape, batch=EXAMPLE_BATCH, seed=subject.seed + 10)


def _elsewhere(subject: Subject, folded: nn.Module, record: Record) -> tuple[tuple[Any, ...] | None, bool | None]:
    """Whether the folded model takes another height and width; and inputs, where float32 leaves open if it is right."""
    shape = subject.shape
    other = subject.entry.other or (*shape[:-2], shape[-2] + 32, shape[-1] + 64)
    inputs = fresh_inputs(subject.entry, other, batch=EXAMPLE_BATCH, seed=subject.seed + 12)
    try:
        before = call(subject.model, inputs)
    except Exception:
        return None, None
    try:
        after = call(folded, inputs)
    except OTHER_INPUT as error:
        record["size_message"] = message(error)
        return None, False
    return None if distance(before, after) <= ROUNDING_FLOOR else in_double(inputs), True


def _nudged(inputs: Any) -> Any:
    """Return inputs moved by a few of their last places."""
    generator = torch.Generator().manual_seed(0)
    return pytree.tree_map(
        lambda x: x * (1 + NUDGE * torch.randn(x.shape, generator=generator, dtype=x.dtype)) if _floating(x) else x,
        inputs,
    )


def _floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _judge(record: Record) -> None:
    error = record["error"]
    allowed = max(ROUNDING_FACTOR * error["original32"], ROUNDING_FLOOR)
    if max(error["algebra"], error["float64"]) > TOLERANCE:
        guilty = "the capture" if error["algebra"] <= TOLERANCE else "the fold"
        worst = max(error["algebra"], error["float64"])
        record["outcome"], record["message"] = "wrong", f"{guilty} is off by {worst:.2e} of the peak in float64"
    elif not error.get("other_size", 0.0) <= max(TOLERANCE, NUDGES * error.get("other_size_nudge", 0.0)):
        record["outcome"] = "wrong"
        record["message"] = f"at another size it is off by {error['other_size']:.2e} of the peak in float64"
    elif record["left"] != record["actions"]["keep"]:
        record["outcome"] = "incomplete"
        record["message"] = f"{record['left']} BatchNorms are left, the plan keeps {record['actions']['keep']}"
    elif not error["folded32"] <= allowed and math.isfinite(error["original32"]):
        record["outcome"] = "inexact"
        record["message"] = f"float32 error {error['folded32']:.2e}, the original's is {error['original32']:.2e}"
    else:
        record["outcome"] = "equivalent"


def _fold(subject: Subject, record: Record, merge: bool) -> api.Folding:
    start = time.perf_counter()
    folding = api.fold(subject.model, _example(subject), merge=merge)
    record["seconds"].update(folding.seconds, fold=since(start))
    return folding


def _plainly(folding: api.Folding, double: tuple[Any, ...], record: Record) -> tuple[list[Any], list[Any]]:
    """Outputs of the captured graph and of the folded one in float64, as they come.

    Where code that was not captured insists on a narrower type they are rounded in the middle, or it raises, which the
    record keeps; then nothing is returned.
    """
    try:
        expected, computed = (call(graph, double) for graph in folding.in_float64())
    except Exception as error:
        record["narrow"] = message(error)
        return [], [None]
    return expected, computed


def _oracle(model: nn.Module, double: tuple[Any, ...], record: Record) -> list[Any] | None:
    """The model itself in float64, or None where its code insists on float32."""
    try:
        with Throughout64():
            return call(copy.deepcopy(model).double(), double)
    except Exception as error:
        record["no_oracle"] = message(error)
        return None


def _unseen(model: nn.Module, double: tuple[Any, ...], seed: int) -> list[str] | None:
    try:
        with Throughout64():
            return unseen(copy.deepcopy(model).double(), double, seed=seed)
    except Exception:  # the gradient is a service to the reader; a model that has none is no finding
        return None


def _failed(record: Record, outcome: str, stage: str, error: Exception) -> None:
    record["outcome"], record["stage"], record["message"] = outcome, stage, message(error)
    if outcome == "crash":
        record["traceback"] = "".join(traceback.format_exception(error))[-3000:]
