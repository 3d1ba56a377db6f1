"""The oracle: the original model in float64, whatever precision its own code asks for.

    oracle(x) = the model with every parameter, input, constant and intermediate value in float64

A copy is converted, so the caller's model stays as it is; its large weights are cast when a call needs them
(:mod:`bnfold.on_demand`), and never all at once. Converting parameters is not enough: code such as
``x.float()`` or ``torch.zeros(n, dtype=torch.float32)`` inside a model would round halfway, and the oracle would be no
better than what it judges. :class:`Float64` therefore stands below the model, at the level of aten operators, and turns
every request for a lower floating precision into one for float64.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.errors import UsageError
from bnfold.graph.requires import require_dtype
from bnfold.graph.torch_versions import exact_settings
from bnfold.on_demand import OnDemand, refuse_lent

__all__ = [
    "Float64",
    "copied",
    "copied_in_float64",
    "everything_in_float64",
    "exact_arithmetic",
    "fresh",
    "fresh_in_float64",
    "in_float64",
    "lent",
    "lent_in_float64",
]

WIDE = {
    torch.float8_e4m3fn: torch.float64,
    torch.float8_e5m2: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}

# A random number generator gives other numbers for another dtype: these keep theirs, and their result is converted.
RANDOM = frozenset(
    {"rand", "randn", "rand_like", "randn_like", "uniform", "normal", "normal_functional", "bernoulli", "exponential"}
)
# These say something about bits, not about numbers.
BITS = frozenset({"view.dtype", "frexp.Tensor"})


class Float64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, every operator computes and returns float64 where it would a lower floating precision."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` with its floating tensors and its dtype arguments raised to float64."""
        kwargs = kwargs or {}
        name = f"{func._schema.name.split('::')[-1]}.{func._overloadname}".removesuffix(".default")
        if func._schema.is_mutable:
            refuse_lent(func, args, kwargs)
        if name in BITS or func._schema.is_mutable:
            return func(*args, **kwargs)  # what is written in place has been made in float64, or is the caller's own
        if name.split(".")[0] in RANDOM:
            return pytree.tree_map(in_float64, func(*args, **kwargs))
        args, kwargs = pytree.tree_map(_raised, (args, kwargs))
        return func(*args, **kwargs)


def _raised(value: Any) -> Any:
    """Return a tensor or a dtype raised to float64 where it is lower."""
    return WIDE.get(value, value) if isinstance(value, torch.dtype) else in_float64(value)


def in_float64(value: Any) -> Any:
    """Return ``value`` in float64 (complex128) if it is a tensor of a lower floating precision, else as it is."""
    return value.to(WIDE[value.dtype]) if isinstance(value, Tensor) and value.dtype in WIDE else value


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy of ``module`` that shares no tensor with it.

    Raises:
        UsageError: something in it cannot be copied.
    """
    return _copied(module, lambda tensor: tensor.detach().clone())


def copied_in_float64(module: nn.Module) -> nn.Module:
    """Return a deep copy of ``module`` with parameters, buffers and tensor attributes in float64.

    A folded model that checks for a dtype checks for float64 instead.

    Raises:
        UsageError: something in it cannot be copied.
    """
    return _checking_for_float64(_copied(module, _in_float64))


def lent(module: nn.Module) -> nn.Module:
    """Return a deep copy of ``module`` that shares its large tensors; whoever runs it must know that it writes none.

    Raises:
        UsageError: something in it cannot be copied.
    """
    return _copied(module, lambda tensor: tensor.detach() if OnDemand.suits(tensor) else tensor.detach().clone())


def lent_in_float64(module: nn.Module) -> nn.Module:
    """Return a deep copy of ``module`` in float64 whose large tensors are cast when a call needs them.

    Raises:
        UsageError: something in it cannot be copied.
    """

    def convert(tensor: Tensor) -> Tensor:
        if OnDemand.suits(tensor):
            return OnDemand.of(tensor, WIDE.get(tensor.dtype, tensor.dtype))
        return _in_float64(tensor)

    return _checking_for_float64(_copied(module, convert))


def _in_float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to(WIDE.get(tensor.dtype, tensor.dtype), copy=True)


def _checking_for_float64(wide: nn.Module) -> nn.Module:
    """Let what checks for a dtype check for float64, in place, and return it."""
    for part in wide.modules():
        if isinstance(part, GraphModule):
            checks = [node for node in part.graph.nodes if node.target is require_dtype]
            for node in checks:
                node.args = tuple(WIDE.get(value, value) for value in node.args)
            if checks:
                part.recompile()
    return wide


def fresh(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return inputs for one run: copies, since a model may write into what it is given."""
    made: dict[int, Tensor] = {}  # one tensor given twice stays one, for code that asks whether it is

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        return made.setdefault(id(value), value.detach().clone())

    return tuple(pytree.tree_map(copied, tuple(inputs)))


def fresh_in_float64(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return inputs for one run in float64: copies, those inside of lists and dicts too."""
    return tuple(pytree.tree_map(in_float64, fresh(inputs)))


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Switch TF32, reduced-precision sums, autotuning and gradients off; restore every setting on leaving.

    The random state is restored too, and warnings are held back.
    """
    settings = exact_settings()
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        devices = range(torch.cuda.device_count())
        with torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a model warns of is its own affair, and was said when it was run
            yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextlib.contextmanager
def everything_in_float64() -> Iterator[None]:
    """Make float64 the default dtype and the least floating precision of every operator; restore on leaving."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(default)


def _copied(module: nn.Module, convert: Any) -> nn.Module:
    """Deep-copy ``module`` with every tensor in it replaced by ``convert`` of it.

    The memo of ``deepcopy`` is filled beforehand: tensors are converted while they are copied, so that no second copy
    is made, and those that ``deepcopy`` refuses (results of a computation, as legacy ``weight_norm`` keeps) are copied
    too. Tensors that are shared stay shared.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        held = [*part._parameters.values(), *part._buffers.values(), *part.__dict__.values()]
        for tensor in held:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                fresh = convert(tensor)
                if isinstance(tensor, nn.Parameter) and not isinstance(fresh, nn.Parameter):
                    fresh = nn.Parameter(fresh, requires_grad=False)
                memo[id(tensor)] = fresh
    try:
        copy_of = copy.deepcopy(module, memo)
    except Exception as error:
        raise UsageError(
            f"The {type(module).__name__} cannot be copied: {error}.",
            fix="Verification works on copies; make the module pass copy.deepcopy.",
        ) from error
    return copy_of
