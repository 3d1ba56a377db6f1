"""Reads nodes as :mod:`bnfold.graph.calls`: one vocabulary over modules, functions, methods and aten operators.

To teach it another spelling of a known operation, add a row to one of the tables:

=====================  ==============================================================================================
:mod:`.modules`        layers, by type
:mod:`.weighted`       functions with weights: convolutions, linear layers, embeddings, normalisations
:mod:`.windows`        functions that look through windows over space: pooling, means, padding, resizing
:mod:`.elementwise`    activations, sums, dropout, and what passes a value on
:mod:`.shapes`         functions that move numbers and compute none, and reads of a shape or a dtype
=====================  ==============================================================================================

A row is a signature, which names the arguments, and a reader, which makes a call of them. Functions of torch, of
``torch.nn.functional`` and aten operators stand in ``FUNCTIONS``, tensor methods by name in ``METHODS``.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.proof import behaves_like_batch_norm
from bnfold.graph.signature import NotStaticError, Signature
from bnfold.graph.taught import Normalizes, claim_of
from bnfold.graph.vocabulary import elementwise, shapes, weighted, windows
from bnfold.graph.vocabulary.modules import MODULES, explicit_affine, frozen_batch_norm, taught
from bnfold.graph.vocabulary.reading import Row

__all__ = ["arguments_of", "read_function", "read_module", "register_explicit_affine"]

FUNCTIONS: dict[Any, Row] = {
    **weighted.FUNCTIONS,
    **windows.FUNCTIONS,
    **elementwise.FUNCTIONS,
    **shapes.FUNCTIONS,
}
METHODS: dict[str, Row] = {**windows.METHODS, **elementwise.METHODS, **shapes.METHODS}


def read_module(node: Node, module: nn.Module) -> calls.Call | None:
    """Read a ``call_module`` node; None for a module of a type that is not in the table."""
    claim = claim_of(module)
    if claim is not None and not isinstance(claim, Normalizes):
        return taught(node, module, claim) if len(node.args) == 1 and not node.kwargs else None
    reader = MODULES.get(type(module))
    if reader is None and behaves_like_batch_norm(module):
        reader = frozen_batch_norm
    if reader is None or len(node.args) + len(node.kwargs) != 1:
        return None  # more than the input: output_size of a transposed convolution decides its shape, say
    try:
        return reader(node, module, str(node.target))
    except NotStaticError:
        return None


def read_function(node: Node) -> calls.Call | None:
    """Read a ``call_function`` or ``call_method`` node; None for one that is not in the tables."""
    row = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
    if row is None:
        return None
    signature, reader = row
    try:
        return reader(node, signature.bind(node))
    except NotStaticError:
        return None


def arguments_of(node: Node) -> Signature:
    """Return the signature by which a known function node's arguments are read and written."""
    row = METHODS[str(node.target)] if node.op == "call_method" else FUNCTIONS[node.target]
    return row[0]


def register_explicit_affine(kind: type[nn.Module]) -> None:
    """Make known bnfold's own explicit affine layer, which is defined later (:mod:`bnfold.fold.explicit`)."""
    MODULES[kind] = explicit_affine
