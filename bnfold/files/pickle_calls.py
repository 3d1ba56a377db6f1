"""The functions that a file may have called while it is loaded, each with the arguments that torch.save gives it.

torch's own list is longer: it also lets a file make tensors of any size out of nothing, pick codecs by name, and put
together sparse, quantized and nested tensors. Here every row is a function of the arguments that returns what
:mod:`bnfold.files.pickles` puts in the result's place, or raises. What is in no row is not called.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from bnfold.files.pickle_values import BadPickleError, Name, Storage, TensorClaim
from bnfold.printable import shown

__all__ = ["CALLS"]

MOST_DIMENSIONS = 64


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, hooks: Any, metadata: Any = None
) -> TensorClaim:
    """Check a tensor's claim against its storage; all in elements."""
    if not isinstance(storage, Storage):
        raise BadPickleError("holds a tensor without a storage")
    numbers = (offset, *_integers(shape), *_integers(stride))
    if (
        len(shape) != len(stride)
        or len(shape) > MOST_DIMENSIONS
        or any(n < 0 or n >= 1 << 62 for n in _integers(numbers))
    ):
        raise BadPickleError(f"holds a tensor of the invalid shape {shown(shape)} with strides {shown(stride)}")
    if metadata:
        raise BadPickleError("holds a tensor that is a lazy conjugate or negative of another")
    count, last = 1, offset
    for size, step in zip(shape, stride, strict=True):
        count *= size
        last += (size - 1) * step
    if count > storage.elements or (count and last >= storage.elements):
        raise BadPickleError(
            f"holds a tensor of shape {shown(list(shape))} that claims more than the {storage.elements} elements which "
            f"the file holds of storage `{shown(storage.key)}`"
        )
    return TensorClaim(storage, tuple(shape), hooks)


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> TensorClaim:
    """Check a tensor whose storage is counted in bytes, for number formats that have no storage class."""
    size = _BYTES.get(dtype.full) if isinstance(dtype, Name) else None
    if size is None or not isinstance(storage, Storage) or storage.kind != "torch.storage.UntypedStorage":
        raise BadPickleError(f"holds a tensor in an unknown number format, `{shown(getattr(dtype, 'full', dtype))}`")
    elements = Storage(storage.kind, storage.key, storage.elements // size)
    return _tensor(elements, offset, shape, stride, grad, hooks, metadata)


_BYTES = {f"torch.uint{bits}": bits // 8 for bits in (16, 32, 64)}
_BYTES |= {f"torch.float8_{form}": 1 for form in ("e5m2", "e4m3fn", "e5m2fnuz", "e4m3fnuz", "e8m0fnu")}


def _parameter(data: Any, _grad: Any, hooks: Any) -> TensorClaim:
    if not isinstance(data, TensorClaim) or data.hooks:
        raise BadPickleError("holds a parameter that is not a tensor")
    return TensorClaim(data.storage, data.shape, hooks, is_parameter=True)


def _parameter_with_state(data: Any, grad: Any, hooks: Any, state: Any) -> TensorClaim:
    _check_attributes(state)
    return _parameter(data, grad, hooks)


def _tensor_with_state(function: Any, kind: Any, arguments: Any, state: Any) -> TensorClaim:
    """Check a tensor that carries attributes; a tensor of a subclass is refused."""
    names = tuple(name.full if isinstance(name, Name) else "?" for name in (function, kind))
    if names[1] != "torch.Tensor":
        raise BadPickleError(f"holds a tensor of the subclass `{shown(names[1])}`")
    makers: dict[str, Callable[..., TensorClaim]] = {
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    }
    make = makers.get(names[0])
    if make is None or type(arguments) is not tuple:
        raise BadPickleError(f"rebuilds a tensor with `{shown(names[0])}`")
    _check_attributes(state)
    return make(*arguments)


def _check_attributes(state: Any) -> None:
    """Refuse attributes of a tensor that would stand in for the tensor's own, or are more than plain values."""
    import torch

    if type(state) is tuple and len(state) == 2 and not state[1]:
        state = state[0]
    if state is None:
        return
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise BadPickleError("sets attributes of a tensor in a way that torch.save never writes")
    for name, value in state.items():
        if name.startswith("__") or hasattr(torch.nn.Parameter, name):
            raise BadPickleError(f"replaces the attribute `{shown(name)}` of a tensor")
        if not _is_plain(value):
            raise BadPickleError(f"gives a tensor the attribute `{shown(name)}`, which is not a plain value")


def _is_plain(value: Any) -> bool:
    if type(value) in {list, tuple}:
        return all(type(part) in {str, int, float, bool, type(None)} for part in value)
    return type(value) in {str, int, float, bool, type(None)}


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    if type(pairs) not in {list, tuple}:
        raise BadPickleError("makes a dict from unexpected arguments")
    made: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs:
        if type(pair) not in {list, tuple} or len(pair) != 2 or type(pair[0]) not in {str, int}:
            raise BadPickleError("makes a dict from unexpected arguments")
        made[pair[0]] = pair[1]
    return made


def _set(items: Any = ()) -> list[Any]:
    if type(items) not in {list, tuple} or any(type(item) not in {str, int, float, bool, type(None)} for item in items):
        raise BadPickleError("makes a set of something other than names and numbers")
    return list(items)


def _counter(items: Any = ()) -> dict[Any, Any]:
    if type(items) is not dict or not all(type(value) is int for value in items.values()):
        raise BadPickleError("makes a counter from unexpected arguments")
    return dict(items)


def _size(sizes: Any) -> tuple[int, ...]:
    return _integers(sizes)


def _plain_values(*values: Any) -> tuple[Any, ...]:
    if len(values) > 2 or not all(type(value) in {str, int, float} for value in values):
        raise BadPickleError("makes a device or a number from unexpected arguments")
    return values


def _bytes(text: Any, codec: Any = "latin1") -> str:
    if type(text) is not str or codec not in {"latin1", "latin-1"}:
        raise BadPickleError(f"asks for the codec `{shown(codec)}`")
    return text


def _integers(values: Any) -> tuple[int, ...]:
    if type(values) not in {tuple, list} or not all(type(value) is int for value in values):
        raise BadPickleError(f"holds a shape that is not a list of whole numbers, {shown(values)}")
    return tuple(values)


def _refuse(what: str) -> Callable[..., Any]:
    def refuse(*_arguments: Any) -> Any:
        raise BadPickleError(f"holds {what}, which bnfold does not fold")

    return refuse


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_state,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.complex": _plain_values,
    "torch.Size": _size,
    "torch.device": _plain_values,
    "_codecs.encode": _bytes,
    "torch.serialization._get_layout": lambda *_names: None,
    "torch._utils._rebuild_qtensor": _refuse("a quantized tensor"),
    "torch._utils._rebuild_sparse_tensor": _refuse("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _refuse("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _refuse("a meta tensor, which has no values"),
    "torch._utils._rebuild_wrapper_subclass": _refuse("a tensor subclass"),
    "torch._utils._rebuild_device_tensor_from_numpy": _refuse("a tensor on a device that this machine may not have"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _refuse(
        "a tensor on a device that this machine may not have"
    ),
}
