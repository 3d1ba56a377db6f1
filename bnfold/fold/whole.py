"""Plan and rewrite a model that was captured piece by piece, or as a whole: the same two functions for both."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from types import MethodType
from typing import Any, Literal

from torch import nn

from bnfold.affine import exact_terms
from bnfold.errors import UnknownNameError
from bnfold.fold.decision import Action, Decision, MergeDecision, listed
from bnfold.fold.explicit import ExplicitAffine
from bnfold.fold.merge.planner import with_merges
from bnfold.fold.plan import Explicit, Plan, Steps, make_plan
from bnfold.fold.rewrite import folded_capture, rewrite
from bnfold.graph.captured import Capture
from bnfold.graph.facts import Facts
from bnfold.graph.leaves import carries_hooks
from bnfold.graph.shells import shell
from bnfold.ops.refusal import Refusal

__all__ = ["plan_model", "rewrite_model", "unfolded_model"]

_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def plan_model(
    capture: Capture,
    keep: frozenset[str],
    share: Literal["clone", "keep"],
    refused: Mapping[str, Refusal],
    *,
    merge: bool = False,
) -> Plan:
    """Return the plan for a captured model.

    Args:
        capture: the graph and the model.
        keep: names of BatchNorms to leave and, where merging, of convolutions that stay apart.
        share: what to do with a layer that is called at several sites.
        refused: folds and merges that a rewrite found impossible, by name of the node.
        merge: also plan which convolutions become one.

    Raises:
        UnknownNameError: a name in ``keep`` is not that of a BatchNorm call.
    """
    if capture.way == "piecewise":
        plan = _plan_pieces(capture, keep, share, refused, merge=merge)
    else:
        plan = _plan_whole(capture, keep, share, refused, merge=merge)
    known = {decision.batchnorm for decision in plan} | {decision.site for decision in plan}
    known |= {decision.into for decision in plan.merges}
    for name in sorted(keep - known):
        close = difflib.get_close_matches(name, known, 3)
        fix = f"Did you mean {' or '.join(close)}?" if close else "See `bnfold explain MODEL` for their names."
        raise UnknownNameError(f"The model calls no BatchNorm named {name!r}.", fix=fix)
    return plan if len(plan) else replace(plan, notes=(_nothing_to_fold(capture.root), *plan.notes))


def _nothing_to_fold(model: nn.Module) -> str:
    holds = any(isinstance(part, _LAYERS) for part in model.modules())
    return f"The model {'calls' if holds else 'holds'} no BatchNorm: there is nothing to fold."


def _plan_whole(
    capture: Capture,
    keep: frozenset[str],
    share: Literal["clone", "keep"],
    refused: Mapping[str, Refusal],
    *,
    merge: bool,
) -> Plan:
    original = Facts.of(capture)
    plan = make_plan(original, keep=keep, share=share, refused=refused)
    if not merge:
        return plan
    folded = Facts.of(folded_capture(capture, plan, original.shapes_by_name()))
    return with_merges(plan, folded, original, keep=keep, share=share, refused=refused)


def unfolded_model(capture: Capture) -> nn.Module:
    """Return the model as captured, by a rewrite that folds nothing."""
    return rewrite_model(capture, Plan((), capture.way))


def rewrite_model(capture: Capture, plan: Plan) -> nn.Module:
    """Return the folded model: a ``GraphModule``, or a shell of the model with one for each piece.

    A piece that stands for several layers of an ``nn.Sequential`` takes the place of the first, and the others become
    the identity. What is put in a place takes over the plain attributes of what stood there, so that code which reads
    them still can.
    """
    if capture.way != "piecewise":
        return rewrite(capture, plan)
    whole: nn.Module = shell(capture.root, {})
    for path, piece in capture.pieces.items():
        graph = rewrite(piece, plan.pieces.get(path, Plan((), "")))
        for place, part in ((path, graph), *((place, nn.Identity()) for place in piece.passed)):
            _take_attributes(part, capture.module(place))
            _put(whole, place, part)
    for name in plan.steps.explicit:
        layer: Any = capture.module(name)
        alpha, beta = exact_terms(layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
        needs_grad = layer.weight is not None and bool(layer.weight.requires_grad)
        _put(whole, name, ExplicitAffine(alpha, beta, requires_grad=needs_grad))
    return whole


def _take_attributes(part: nn.Module, of: nn.Module) -> None:
    for name, value in of.__dict__.items():
        if name not in part.__dict__ and not name.startswith("_") and not isinstance(value, MethodType):
            part.__dict__[name] = value


def _put(whole: nn.Module, path: str, part: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    whole.get_submodule(owner)._modules[name] = part


def _plan_pieces(
    capture: Capture,
    keep: frozenset[str],
    share: Literal["clone", "keep"],
    refused: Mapping[str, Refusal],
    *,
    merge: bool,
) -> Plan:
    """Plan each piece by itself; a BatchNorm outside of all pieces becomes an explicit affine where it stands."""
    pieces: dict[str, Plan] = {}
    decisions: list[Decision] = []
    merges: list[MergeDecision] = []
    for path, piece in capture.pieces.items():
        place = path + "."  # sites begin with it, and names are those of the whole
        inner = keep | {name.removeprefix(place) for name in keep if name.startswith(place)}
        theirs = {site.removeprefix(place): why for site, why in refused.items() if site.startswith(place)}
        pieces[path] = _plan_whole(piece, inner, share, theirs, merge=merge)
        decisions.extend(replace(decision, site=place + decision.site) for decision in pieces[path])
        merges.extend(replace(decision, site=place + decision.site) for decision in pieces[path].merges)
    steps = Steps()
    taken = tuple(f"{place}." for path, piece in capture.pieces.items() for place in (path, *piece.passed))
    for name, module in capture.root.named_modules():
        if isinstance(module, _LAYERS) and not (name + ".").startswith(taken):
            decisions.append(_outside(name, module, keep, steps))
    inside = tuple(f"In `{path}`: {note}" for path, piece in pieces.items() for note in piece.notes)
    count = f"{len(pieces)} piece{'s' if len(pieces) != 1 else ''}"
    notes = (*capture.notes, f"captured in {count}: {listed(tuple(map(_place_of, capture.pieces.items())))}", *inside)
    return Plan(tuple(decisions), capture.way, notes, tuple(merges), steps, pieces)


def _place_of(item: tuple[str, Capture]) -> str:
    place, piece = item
    return f"{place} to {piece.passed[-1]}" if piece.passed else place


def _outside(name: str, module: Any, keep: frozenset[str], steps: Steps) -> Decision:
    """Decide about a BatchNorm that is called by code which could not be captured."""
    action: Action = "keep"
    if name in keep:
        reason, because = "kept-by-request", "the caller asked to keep it"
    elif module.running_mean is None:
        reason, because = "batch-statistics", "it uses the mean and variance of each batch, in eval mode too"
    elif carries_hooks(module) or type(module) not in _LAYERS:
        reason, because = "hooks", "it carries hooks, or code of its own"
    else:
        action, reason, because = "affine", "not-captured", "the code that calls it cannot be captured"
        steps.explicit[name] = Explicit()
    return Decision(name, action, None, (), (), reason, "", site=name).staying(because)
