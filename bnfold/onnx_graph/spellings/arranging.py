"""Operators that move numbers and compute none; and questions about shapes."""

from __future__ import annotations

from bnfold import ops
from bnfold.onnx_graph.arguments import NodeArguments
from bnfold.onnx_graph.values import OnnxValue
from bnfold.ops.spelling import NotStaticError

__all__ = ["READERS"]


def _reshape(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    return ops.Reshape(node, a.value())


def _question(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    return ops.MetadataRead(node, a.value())


def _transpose(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    order = a.integers("perm")
    if order is None:
        order = tuple(reversed(range(a.rank())))
    return ops.Permute(node, a.value(), order) if sorted(order) == list(range(len(order))) else None


def _depth_to_space(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    mode = str(a.attribute("mode", "DCR"))
    if mode not in ("DCR", "CRD"):
        return None
    return ops.PixelShuffle(node, a.value(), a.integer("blocksize", 0), mode == "DCR")


def _space_to_depth(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    mode = str(a.attribute("mode", "DCR"))
    return ops.PixelUnshuffle(node, a.value(), a.integer("blocksize", 0), True) if mode == "DCR" else None


# --- cutting -----------------------------------------------------------------------------------------------------


def _split(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    rank, axis, count = a.rank(), a.integer("axis", 0), len(a.node.outputs)
    if not -rank <= axis < rank:
        return None
    listed = a.version >= 13 and a.has(1)
    pieces = a.whole_numbers(1) if listed else a.integers("split")
    if pieces is not None:
        return ops.Split(node, a.value(), axis % rank, pieces, None) if len(pieces) == count else None
    whole = a.facts.channels(a.value(), axis % rank)
    if whole is None:
        return None
    size = -(-whole // count)
    sizes = tuple(min(size, whole - start) for start in range(0, whole, size))
    return ops.Split(node, a.value(), axis % rank, sizes, None) if len(sizes) == count else None


def _slice(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    rank = a.rank()
    if a.version < 10:
        starts, ends, axes = a.integers("starts") or (), a.integers("ends") or (), a.integers("axes")
        steps: tuple[int, ...] = (1,) * len(starts)
    else:
        axes = a.whole_numbers(3) if a.has(3) else None
        if not (a.is_constant(1) and a.is_constant(2)):
            if axes is None:
                return None
            return ops.Slice(node, a.value(), None, 0, None, tuple(axis % rank for axis in axes))
        starts, ends = a.whole_numbers(1), a.whole_numbers(2)
        steps = a.whole_numbers(4) if a.has(4) else (1,) * len(starts)
    axes = tuple(range(len(starts))) if axes is None else axes
    if not len(starts) == len(ends) == len(axes) == len(steps) or any(not -rank <= axis < rank for axis in axes):
        return None
    cuts = [
        (axis % rank, start, None if end >= 2**31 - 1 else end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
        if (start, step) != (0, 1) or end < 2**31 - 1
    ]
    if len({axis for axis, *_ in cuts}) != len(cuts):
        raise NotStaticError("an axis cut twice")
    if not cuts:
        return ops.Passing(node, a.value())
    plain = [cut for cut in cuts if cut[3] == 1]
    if not plain:
        return ops.Slice(node, a.value(), None, 0, None, tuple(axis for axis, *_ in cuts))
    dim, start, stop, _ = min(plain, key=lambda cut: (cut[0] != 1, cut[0]))
    return ops.Slice(node, a.value(), dim, start, stop, tuple(axis for axis, *_ in cuts if axis != dim))


def _gather(node: OnnxValue, a: NodeArguments) -> ops.Operation | None:
    """By a list of numbers; negative ones count from the end from opset 11 on."""
    if a.is_constant(0):
        return None
    rank, axis = a.rank(), a.integer("axis", 0)
    if not -rank <= axis < rank or len(a.shape(1)) != 1:
        return None
    return ops.Select(node, a.value(), axis % rank, a.whole_numbers(1), a.version >= 11)


READERS = {
    "DepthToSpace": _depth_to_space,
    "Flatten": _reshape,
    "Gather": _gather,
    "Reshape": _reshape,
    "Shape": _question,
    "Size": _question,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
