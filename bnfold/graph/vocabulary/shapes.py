"""Functions that move numbers and compute none: reshaping, joining, cutting; and reads of a shape or a dtype."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from bnfold.graph import calls
from bnfold.graph.signature import Signature, static
from bnfold.graph.vocabulary.reading import ANYTHING, UNARY, Arguments, Row, spelled, value_of

__all__ = ["FUNCTIONS", "METHODS"]


def _pixel_shuffle(node: Node, a: Arguments) -> calls.Call:
    return calls.PixelShuffle(node, value_of(a["input"]), static(a["factor"]))


def _pixel_unshuffle(node: Node, a: Arguments) -> calls.Call:
    return calls.PixelUnshuffle(node, value_of(a["input"]), static(a["factor"]))


def _channel_shuffle(node: Node, a: Arguments) -> calls.Call:
    return calls.ChannelShuffle(node, value_of(a["input"]), static(a["groups"]))


def _reshape(node: Node, _a: Arguments) -> calls.Call:
    return calls.Reshape(node, value_of(node.args[0] if node.args else node.kwargs["input"]))


def _method_view(node: Node, _a: Arguments) -> calls.Call | None:
    if len(node.args) == 2 and isinstance(node.args[1], torch.dtype):  # reinterprets bits
        return None
    return _reshape(node, {})


def _method_permute(node: Node, _a: Arguments) -> calls.Call:
    order = node.args[1:] if len(node.args) != 2 or isinstance(node.args[1], int) else node.args[1]
    if node.kwargs:
        order = node.kwargs.get("dims", order)
    return calls.Permute(node, value_of(node.args[0]), static(order))


def _transpose(node: Node, a: Arguments) -> calls.Call:
    return calls.Permute(node, value_of(a["input"]), (static(a["dim0"]), static(a["dim1"])), swap=True)


def _concatenate(node: Node, a: Arguments) -> calls.Call | None:
    parts = a["tensors"]
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, Node) for part in parts):
        return None
    return calls.Concatenate(node, tuple(parts), static(a["dim"]))


def _getitem(node: Node, a: Arguments) -> calls.Call | None:
    source, index = value_of(a["input"]), a["index"]
    if isinstance(index, int):
        return calls.Item(node, source, index)
    parts = index if isinstance(index, tuple) else (index,)
    cuts: list[tuple[int, slice]] = []
    dim = 0
    for position, part in enumerate(parts):
        if part is Ellipsis:
            dim = position + 1 - len(parts)  # from here on, counted from the end
            continue
        if isinstance(part, (Node, list)) and isinstance(index, tuple):  # `x[mask]` may run over all dimensions
            rest = [other for other in parts if other is not part]
            whole = all(other is Ellipsis or (isinstance(other, slice) and _is_whole(other)) for other in rest)
            return _select(node, {"input": source, "dim": dim, "index": part}, wraps=True) if whole else None
        if not isinstance(part, slice):
            return None
        if not _is_whole(part):
            cuts.append((dim, part))
        dim += 1
    return _cut(node, source, cuts)


_WHOLE = {(start, None, step) for start in (None, 0) for step in (None, 1)}


def _is_whole(cut: slice) -> bool:
    return not _computed(cut) and (cut.start, cut.stop, cut.step) in _WHOLE


def _select(node: Node, a: Arguments, *, wraps: bool = False) -> calls.Call | None:
    index = a["index"]
    if not isinstance(index, Node):
        index = static(index)
        if not isinstance(index, tuple) or not all(type(entry) is int for entry in index):
            return None
    return calls.Select(node, value_of(a["input"]), static(a["dim"]), index, wraps)


def _aten_index(node: Node, a: Arguments) -> calls.Call | None:
    """``aten.index.Tensor(x, [None, index])``: along the dimension of the only index."""
    given = [(dim, index) for dim, index in enumerate(a["indices"]) if index is not None]
    if len(given) != 1:
        return None
    ((dim, index),) = given
    return _select(node, {"input": a["input"], "dim": dim, "index": index}, wraps=True)


def _cut(node: Node, source: Node, cuts: list[tuple[int, slice]]) -> calls.Call:
    """A slice along some dimensions: one of them, dimension 1 if it can be, as numbers; of the others, the names."""
    if not cuts:
        return calls.Passing(node, source)
    plain = [(dim != 1, dim, cut) for dim, cut in cuts if cut.step in (None, 1) and not _computed(cut)]
    if not plain:
        return calls.Slice(node, source, None, 0, None, tuple(dim for dim, _ in cuts))
    _, dim, cut = min(plain, key=lambda entry: entry[:2])
    return calls.Slice(node, source, dim, cut.start or 0, cut.stop, tuple(other for other, _ in cuts if other != dim))


def _computed(cut: slice) -> bool:
    return isinstance(cut.start, Node) or isinstance(cut.stop, Node)


def _narrow(node: Node, a: Arguments) -> calls.Call | None:
    start, length = static(a["start"]), static(a["length"])
    if start < 0 <= start + length:
        return None
    return calls.Slice(node, value_of(a["input"]), static(a["dim"]), start, start + length)


def _aten_slice(node: Node, a: Arguments) -> calls.Call | None:
    stop = None if isinstance(a["end"], int) and a["end"] >= 2**31 else a["end"]
    cut = slice(a["start"], stop, a["step"])
    return _cut(node, value_of(a["input"]), [] if _is_whole(cut) else [(static(a["dim"]), cut)])


def _split(node: Node, a: Arguments) -> calls.Call:
    return calls.Split(node, value_of(a["input"]), static(a["dim"]), static(a["size"]), None)


def _chunk(node: Node, a: Arguments) -> calls.Call:
    return calls.Split(node, value_of(a["input"]), static(a["dim"]), None, static(a["chunks"]))


def _metadata(node: Node, _a: Arguments) -> calls.Call:
    return calls.MetadataRead(node, value_of(node.args[0]))


METADATA_ATTRIBUTES = frozenset(
    "shape ndim dtype device is_cuda is_cpu is_mps is_sparse is_quantized is_meta layout requires_grad itemsize nbytes "
    "is_leaf names".split()
)
METADATA_METHODS = (
    "size dim ndimension numel nelement is_floating_point is_complex get_device element_size type_as_dtype __len__"
).split()


def _attribute(node: Node, a: Arguments) -> calls.Call | None:
    source, name = value_of(a["input"]), a["name"]
    if name in METADATA_ATTRIBUTES:
        return calls.MetadataRead(node, source)
    if name == "mT":
        return calls.Permute(node, source, (-2, -1), swap=True)
    return calls.Passing(node, source) if name == "data" else None


def _rearrange(node: Node, a: Arguments) -> calls.Call:
    dims = static(a["dims"])
    return calls.Rearrange(node, value_of(a["input"]), (dims,) if isinstance(dims, int) else dims)


def _method_flip(node: Node, _a: Arguments) -> calls.Call:
    dims = node.args[1:] if len(node.args) != 2 or isinstance(node.args[1], int) else node.args[1]
    return calls.Rearrange(node, value_of(node.args[0]), static(node.kwargs.get("dims", dims)))


def _permute(node: Node, a: Arguments) -> calls.Call:
    return calls.Permute(node, value_of(a["input"]), static(a["dims"]))


aten = torch.ops.aten
_PERMUTE = Signature("input, dims")
_SWAP = Signature("input, dim0, dim1")
_SPLIT, _CHUNK = Signature("input, size, dim=0"), Signature("input, chunks, dim=0")
_NARROW = Signature("input, dim, start, length")
_SELECT = Signature("input, dim, index")
_ROLL = Signature("input, shifts, dims")  # without dims it runs over all of them

FUNCTIONS: dict[Any, Row] = {
    operator.getitem: (Signature("input, index"), _getitem),
    getattr: (Signature("input, name"), _attribute),
    torch.narrow: (_NARROW, _narrow),
    aten.narrow.default: (_NARROW, _narrow),
    torch.index_select: (_SELECT, _select),
    aten.index_select.default: (_SELECT, _select),
    aten.index.Tensor: (Signature("input, indices"), _aten_index),
    aten.slice.Tensor: (Signature("input, dim=0, start=None, end=None, step=1"), _aten_slice),
}
METHODS: dict[str, Row] = {
    "view": (ANYTHING, _method_view),
    "permute": (ANYTHING, _method_permute),
    "t": (UNARY, lambda n, a: calls.Permute(n, value_of(a["input"]), (0, 1), swap=True)),
    "narrow": (_NARROW, _narrow),
    "index_select": (_SELECT, _select),
    "flip": (ANYTHING, _method_flip),
    "roll": (_ROLL, _rearrange),
    "split": (_SPLIT, _split),
    "chunk": (_CHUNK, _chunk),
}
for _name in ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"):
    METHODS[_name] = (ANYTHING, _reshape)
for _name in ("transpose", "swapaxes", "swapdims"):
    METHODS[_name] = (_SWAP, _transpose)
for _name in METADATA_METHODS:
    METHODS[_name] = (ANYTHING, _metadata)
spelled(
    FUNCTIONS,
    (ANYTHING, _reshape),
    torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze,
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.view_as.default, aten.reshape_as.default,
    aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default,
)  # fmt: skip
spelled(FUNCTIONS, (_PERMUTE, _permute), torch.permute, aten.permute.default)
spelled(FUNCTIONS, (_PERMUTE, _rearrange), torch.flip, aten.flip.default)
spelled(FUNCTIONS, (_ROLL, _rearrange), torch.roll, aten.roll.default)
spelled(
    FUNCTIONS,
    (_SWAP, _transpose),
    torch.transpose, torch.swapaxes, torch.swapdims,
    aten.transpose.int, aten.swapaxes.default, aten.swapdims.default,
)  # fmt: skip
FUNCTIONS[aten.mT.default] = (UNARY, lambda n, a: calls.Permute(n, value_of(a["input"]), (-2, -1), swap=True))
spelled(
    FUNCTIONS,
    (Signature("tensors, dim=0"), _concatenate),
    torch.cat, torch.concat, torch.concatenate, aten.cat.default, aten.concat.default, aten.concatenate.default,
)  # fmt: skip
spelled(FUNCTIONS, (Signature("input, factor"), _pixel_shuffle), F.pixel_shuffle, aten.pixel_shuffle.default)
spelled(FUNCTIONS, (Signature("input, factor"), _pixel_unshuffle), F.pixel_unshuffle, aten.pixel_unshuffle.default)
spelled(FUNCTIONS, (Signature("input, groups"), _channel_shuffle), torch.channel_shuffle, aten.channel_shuffle.default)
spelled(FUNCTIONS, (_SPLIT, _split), torch.split, aten.split.Tensor, aten.split_with_sizes.default)
spelled(FUNCTIONS, (_CHUNK, _chunk), torch.chunk, aten.chunk.default)
spelled(
    FUNCTIONS,
    (ANYTHING, _metadata),
    torch.numel, torch.is_floating_point, torch.is_tensor, aten.sym_size.int, aten.sym_numel.default,
)  # fmt: skip
