"""What the recorder knows of torch's functions, by their names."""

from __future__ import annotations

import operator
from typing import Any

import torch

from bnfold.ops.inplace import IN_PLACE

PAIRS = frozenset("topk sort kthvalue mode cummax cummin aminmax std_mean var_mean".split())

PAIRS_WITH_DIM = frozenset(("max", "min", "median", "nanmedian"))

TENSOR_ATTRIBUTES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag", "grad"))

DEVICE_ATTRIBUTES = frozenset("is_cuda is_cpu is_mps is_xpu is_meta is_ipu is_hpu is_maia is_mtia is_vulkan".split())

ASK_FOR_DATA = {
    "__bool__": "the truth",
    "__int__": "the number",
    "__index__": "the number",
    "__float__": "the number",
    "__complex__": "the number",
    "item": "the number",
    "tolist": "the numbers",
    "numpy": "the numbers",
    "__array__": "the numbers",
    "__repr__": "the text",
    "__format__": "the text",
    "__contains__": "the numbers",
    "__reduce_ex__": "the content",
    "__dlpack__": "the memory",
    "data_ptr": "the memory",
    "untyped_storage": "the memory",
    "storage": "the memory",
    "_typed_storage": "the memory",
    "nonzero": "the places",
    "argwhere": "the places",
    "unique": "the different numbers",
    "unique_consecutive": "the different numbers",
    "_unique2": "the different numbers",
    "masked_select": "the numbers",
    "is_nonzero": "the truth",
    "equal": "the numbers",
    "allclose": "the numbers",
    "bincount": "the numbers",
}

MADE_LIKE = frozenset(
    "new_zeros new_ones new_full new_tensor new_empty zeros_like ones_like full_like empty_like".split()
)
CHANGE_MEMORY = frozenset(("resize_", "resize_as_", "set_", "as_strided_"))

CONVERSIONS = frozenset(("to", "type", "type_as"))

SETTINGS = frozenset(("_set_grad_enabled", "requires_grad_", "set_grad_enabled", "retain_grad", "register_hook"))

# How Python's operators reach a mode, and what they are in a graph: the function, its arguments, whether swapped.
OPERATORS: dict[Any, tuple[Any, int, bool]] = {
    torch.Tensor.__getitem__: (operator.getitem, 2, False),
    torch.Tensor.__setitem__: (operator.setitem, 3, False),
    torch.Tensor.neg: (operator.neg, 1, False),
    torch.Tensor.__eq__: (operator.eq, 2, False),
}
for _name, _function in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "matmul": operator.matmul,
    "remainder": operator.mod,
    "__floordiv__": operator.floordiv,
    "__pow__": operator.pow,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "ne": operator.ne,
}.items():
    OPERATORS[getattr(torch.Tensor, _name)] = (_function, 2, False)
for _name, _function in {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}.items():
    if hasattr(torch.Tensor, _name):
        OPERATORS[getattr(torch.Tensor, _name)] = (_function, 2, True)
for _name, _spelled in {
    "add_": "__iadd__",
    "sub_": "__isub__",
    "mul_": "__imul__",
    "div_": "__itruediv__",
    "floor_divide_": "__ifloordiv__",
    "remainder_": "__imod__",
}.items():
    OPERATORS[getattr(torch.Tensor, _name)] = (IN_PLACE[_spelled], 2, False)
