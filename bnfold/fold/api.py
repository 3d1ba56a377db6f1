"""``bnfold.plan`` and ``bnfold.fold``: capture, plan, rewrite."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from bnfold.errors import NotFiniteError
from bnfold.fold.demand import Refusal
from bnfold.fold.plan import Plan, make_plan
from bnfold.fold.rewrite import rewrite
from bnfold.graph.capture import Capture, capture
from bnfold.graph.shells import double_shell

__all__ = ["Folding", "fold", "plan"]

# The public functions take a parameter called `capture`; the function is needed under another name.
_capture = capture


@dataclass(frozen=True, eq=False)
class Folding:
    """What :func:`fold` returns.

    Attributes:
        module: the folded model, in eval mode, called like the original.
        plan: one decision per BatchNorm call.
        captured: the graph of the original, for proofs.
    """

    module: GraphModule
    plan: Plan
    captured: Capture = field(repr=False)

    def in_float64(self) -> tuple[nn.Module, nn.Module]:
        """Return the original's graph and the folded one, both computed in float64 throughout.

        The same plan is applied to a float64 copy of the model, so that the two differ by nothing but the fold: what
        remains between them is float64 rounding.
        """
        double = replace(
            self.captured,
            graph=_graph_in_double(self.captured.graph),
            root=double_shell(self.captured.root, {}),
            shapes=(),
            constants={name: _double(value) for name, value in self.captured.constants.items()},
            _cache={},
        )
        nothing = Plan((), self.captured.way)
        return rewrite(double, nothing), rewrite(double, self.plan)


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    keep: Iterable[str] = (),
    capture: str = "auto",
    share: Literal["clone", "keep"] = "clone",
) -> Plan:
    """Decide what becomes of each BatchNorm, and change nothing.

    Args, Raises: as for :func:`fold`.
    """
    return make_plan(_capture(model, example_inputs, capture), keep=_names(keep), share=share)


def fold(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    keep: Iterable[str] = (),
    capture: str = "auto",
    merge: bool = False,
    share: Literal["clone", "keep"] = "clone",
) -> Folding:
    """Fold the BatchNorms of a model into the layers before them.

    Args:
        model: in eval mode; not changed. The result shares with it the memory of all weights that no fold touches.
        example_inputs: a tensor, or a tuple of positional inputs. Plain convolutional nets need none.
        keep: names of BatchNorms to leave as they are.
        capture: how to obtain the graph: ``"auto"`` or ``"symbolic"``.
        merge: also merge parallel convolutions of one input (not in this version: must be False).
        share: whether a layer called at several sites is cloned where one of them folds, or kept.

    Raises:
        TrainingModeError: part of the model is in training mode.
        CaptureError: the model's graph cannot be captured.
        UnknownNameError: ``keep`` names no BatchNorm that the model calls.
    """
    if merge:
        raise NotImplementedError("merge=True comes with a later version")
    captured = _capture(model, example_inputs, capture)
    names, refused = _names(keep), dict[str, Refusal]()
    while True:
        decided = make_plan(captured, keep=names, share=share, refused=refused)
        try:
            return Folding(rewrite(captured, decided), decided, captured)
        except NotFiniteError as error:
            # The plan bounds this cheaply; the rare case that its bound missed is planned again, without that fold.
            node = error.node  # type: ignore[attr-defined]
            detail = error.what.rstrip(".")
            new = {decided[a.batchnorm].site for a in decided.steps.absorbed[node]} - refused.keys()
            if not new:
                raise
            refused.update({site: Refusal("weight-not-finite", detail[0].lower() + detail[1:]) for site in new})


def _names(keep: Iterable[str]) -> tuple[str, ...]:
    return (keep,) if isinstance(keep, str) else tuple(keep)


def _double(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


_CASTS = frozenset(("float", "half", "bfloat16"))


def _graph_in_double(graph: Graph) -> Graph:
    """Return a copy of the graph in which no cast to a narrower floating type is left."""
    new = Graph()
    copies: dict[Node, Node] = {}
    new.graph_copy(graph, copies)
    new.set_codegen(copy.copy(graph._codegen))
    old_output = next(node for node in reversed(graph.nodes) if node.op == "output")
    new.node_copy(old_output, copies.__getitem__)
    for node in new.nodes:
        node.args, node.kwargs = _wide(node.args), _wide(node.kwargs)
        if node.op == "call_method" and node.target in _CASTS:
            node.target = "double"
    return new


def _wide(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_wide(part) for part in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {key: _wide(part) for key, part in value.items()}
    return torch.float64 if value in (torch.float32, torch.float16, torch.bfloat16) else value
