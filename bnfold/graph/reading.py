"""Reads a node of torch.fx as an operation: whatever it is, a layer, a function, a method, an aten operator.

The spellings stand beside the operations (:mod:`bnfold.ops`). A type of layer is matched exactly: a subclass may
compute anything. What is read here and not there: layers that a user told of, layers of unknown code that were measured
to be an eval-mode BatchNorm, and bnfold's own explicit affine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import Node

from bnfold import ops
from bnfold.graph.proof import behaves_like_batch_norm, measured_batch_norm
from bnfold.graph.taught import Absorbs, Normalizes, Passes, claim_of
from bnfold.ops.normalising import explicit_affine
from bnfold.ops.spelling import Arguments, NotStaticError, Reader, Signature

__all__ = ["put_arguments", "read_function", "read_module", "register_explicit_affine", "static"]

FUNCTIONS = {spelling: row for family in ops.FAMILIES for spelling, row in family.functions.items()}
METHODS = {name: row for family in ops.FAMILIES for name, row in family.methods.items()}
LAYERS: dict[type, Reader] = {kind: row for family in ops.FAMILIES for kind, row in family.layers.items()}


def static(value: Any) -> Any:
    """Return ``value`` with lists as tuples, if no part of it is computed at run time.

    Raises:
        NotStaticError: part of it is a :class:`torch.fx.Node`.
    """
    if isinstance(value, Node):
        raise NotStaticError(f"{value.name} is computed at run time")
    if isinstance(value, (list, tuple)):
        return tuple(static(part) for part in value)
    return value


class _Given(Arguments):
    """Arguments of a function or a method, bound to the names of its parameters."""

    def __init__(self, bound: Mapping[str, Any]) -> None:
        self.bound = bound

    def get(self, name: str, default: Any = None) -> Any:
        return self.bound.get(name, default)

    def is_value(self, argument: Any) -> bool:
        return isinstance(argument, Node)

    def value(self, name: str = "input") -> Node:
        value = self.bound[name]
        if not isinstance(value, Node):
            raise NotStaticError("the operation is called on a literal")
        return value

    def source(self, name: str) -> ops.Source:
        if self.bound[name] is None:
            return None
        node = self.value(name)
        return str(node.target) if node.op == "get_attr" else node

    def plain(self, argument: Any) -> Any:
        return static(argument)

    def static(self, name: str, default: Any = None) -> Any:
        return static(self.bound.get(name, default))


class _OfLayer(_Given):
    """The input of a layer, and the layer's settings."""

    def __init__(self, node: Node, layer: nn.Module) -> None:
        value = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        super().__init__({"input": value})
        self.layer = layer
        self.name = str(node.target)

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self.layer, name, default)

    def static(self, name: str, default: Any = None) -> Any:
        return static(getattr(self.layer, name, default))

    def source(self, name: str) -> ops.Source:
        return None if getattr(self.layer, name, None) is None else f"{self.name}.{name}"


def read_module(node: Node, module: nn.Module) -> ops.Operation | None:
    """Read a ``call_module`` node; None for a layer of a type that has no row."""
    claim = claim_of(module)
    reader: Reader | None
    if claim is not None and not isinstance(claim, Normalizes):
        reader = _passes(claim) if isinstance(claim, Passes) else _absorbs(claim)
    else:
        reader = LAYERS.get(type(module))
        if reader is None and behaves_like_batch_norm(module):
            reader = _frozen_batch_norm
    if reader is None or len(node.args) + len(node.kwargs) != 1:
        return None  # more than the input: output_size of a transposed convolution decides its shape, say
    try:
        return reader(node, _OfLayer(node, module))
    except NotStaticError:
        return None


def read_function(node: Node) -> ops.Operation | None:
    """Read a ``call_function`` or ``call_method`` node; None for one that has no row."""
    row = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
    if row is None:
        return None
    signature, reader = row
    try:
        return reader(node, _Given(signature.bind(node.args, node.kwargs)))
    except NotStaticError:
        return None


def put_arguments(old: Node, new: Node, values: Mapping[str, Any]) -> None:
    """Set arguments of ``new``, a copy of the function node ``old``, by the names of their parameters."""
    row = METHODS[str(old.target)] if old.op == "call_method" else FUNCTIONS[old.target]
    signature: Signature = row[0]
    args, kwargs = list(new.args), dict(new.kwargs)
    for name, value in values.items():
        index = signature.names.index(name)
        if index < len(args):
            args[index] = value
        else:
            kwargs[name] = value
    new.args, new.kwargs = tuple(args), kwargs


def register_explicit_affine(kind: type[nn.Module]) -> None:
    """Make known bnfold's own explicit affine layer, which is defined later (:mod:`bnfold.fold.explicit`)."""
    LAYERS[kind] = explicit_affine


def _frozen_batch_norm(node: ops.Value, a: Arguments) -> ops.Operation:
    """A layer of unknown code that was measured to be an eval-mode BatchNorm."""
    measured = measured_batch_norm(a.layer)
    assert measured is not None
    statistics = a.source("running_mean"), a.source("running_var"), a.source("weight"), a.source("bias")
    return ops.BatchNorm(node, a.value(), *statistics, measured.eps, False, a.name, measured.rank, fixed=False)


def _passes(claim: Passes) -> Reader:
    return lambda node, a: ops.TaughtPassing(node, a.value(), claim.scale == "nonnegative", claim.shift == "zero")


def _absorbs(claim: Absorbs) -> Reader:
    def read(node: ops.Value, a: Arguments) -> ops.Operation | None:
        weight, bias = (a.layer._parameters.get(name) for name in (claim.weight, claim.bias))
        if weight is None or not -weight.ndim <= claim.dim < weight.ndim:
            return None  # it does not hold what it was said to hold
        names = f"{a.name}.{claim.weight}", (f"{a.name}.{claim.bias}" if bias is not None else None)
        return ops.TaughtAbsorber(node, a.value(), *names, claim.dim % weight.ndim, (claim.weight, claim.bias))

    return read
