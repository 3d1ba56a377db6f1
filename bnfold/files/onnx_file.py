"""ONNX files from strangers: read without running anything or allocating more than they hold; written whole or not.

Weights in a file beside the model stay there, mapped into memory, and are streamed when the model is written. Such a
file must stand in the model's folder, and hold what the model says it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.errors import RefusedFileError, first_line
from bnfold.files.kinds import Kind, open_regular, refusal, sniff
from bnfold.files.save import Output, Written, write_outputs, write_staged
from bnfold.printable import shown_path

__all__ = ["bodies", "graphs", "keeps_weights_apart", "read_onnx", "weight_bytes", "write_onnx"]

_APART = "bnfold.weights_apart"
_LARGEST = 2**31 - 1  # bytes of one protobuf message
_TYPED: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.UINT32: "uint64_data",
    onnx.TensorProto.STRING: "string_data",
}
_PAIRS = frozenset({onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128})


def read_onnx(path: Path) -> ir.Model:
    """Return the model in a file; weights in other files stay there.

    Raises:
        FileAccessError: there is no such file, or it cannot be read.
        RefusedFileError: it is no ONNX model, or one that does not hold together.
    """
    with open_regular(path) as file:
        kind = sniff(file)
        if kind is not Kind.ONNX:
            raise refusal(kind, path)
        size = file.seek(0, os.SEEK_END)
        if size > _LARGEST:
            raise _refused(
                path, "is larger than one protobuf message can be, 2 GiB", "Keep its weights in a file apart."
            )
        file.seek(0)
        content = file.read()
    try:
        proto = onnx.ModelProto.FromString(content)
    except Exception as error:
        raise _refused(path, f"is a broken protobuf: {first_line(error, typed=True)}") from error
    del content
    _check(proto, path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise _refused(path, f"cannot be read as an ONNX model: {first_line(error, typed=True)}") from error
    from onnx_ir.external_data import set_base_dir

    set_base_dir(model.graph, os.fspath(path.resolve().parent))
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto)):
        model.meta[_APART] = True
    return model  # type: ignore[no-any-return]


def _refused(path: Path, what: str, fix: str = "Check it with onnx.checker, or copy it again.") -> RefusedFileError:
    return RefusedFileError(f"{shown_path(path)} {what.rstrip('.')}.", fix=fix)


# --- what a stranger may have made of it -------------------------------------------------------------------------


def _check(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse what does not hold together, before anything is made of it."""
    if not proto.HasField("graph") or not proto.graph.node:
        raise _refused(path, "holds no graph, or an empty one")
    if proto.training_info:
        raise _refused(
            path, "holds information for training, which a fold would make untrue", "Export it for inference."
        )
    folder = path.resolve().parent
    for graph in graphs(proto.graph):
        if graph.sparse_initializer:
            raise _refused(path, "holds sparse weights, which bnfold does not read", "Make them dense first.")
    for tensor in _tensors(proto):
        _check_tensor(tensor, path, folder)
    _check_names(proto.graph, frozenset(), path)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside of its nodes, without recursion: a stranger may have nested them deep."""
    stack = [graph]
    while stack:
        each = stack.pop()
        yield each
        stack += [inner for node in each.node for inner in bodies(node)]


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    nodes = [node for function in proto.functions for node in function.node]
    for graph in graphs(proto.graph):
        yield from graph.initializer
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto, path: Path, folder: Path) -> None:
    """Refuse a tensor that does not hold as many bytes as its shape asks for."""
    name = f"its tensor `{tensor.name[:80]}`"
    if any(size < 0 for size in tensor.dims):
        raise _refused(path, f"is broken: {name} has a negative size")
    count = prod(tensor.dims)
    try:
        bits = ir.DataType(tensor.data_type).bitwidth if tensor.data_type != onnx.TensorProto.STRING else 0
    except Exception:
        raise _refused(path, f"is broken: {name} is of no known type") from None
    wanted = -(-count * bits // 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, path, folder, wanted)
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != wanted:
            raise _refused(
                path, f"is broken: {name} holds {len(tensor.raw_data)} bytes, and its shape asks for {wanted}"
            )
    else:
        held = len(getattr(tensor, _TYPED.get(tensor.data_type, "int32_data")))
        if tensor.data_type in _PAIRS:
            held = len(tensor.float_data) // 2 + len(tensor.double_data) // 2
        packed = -(-count * bits // 8) if bits < 8 and tensor.data_type != onnx.TensorProto.STRING else count
        if held not in (count, packed):
            raise _refused(path, f"is broken: {name} holds {held} numbers, and its shape asks for {count}")


def _check_external(tensor: onnx.TensorProto, path: Path, folder: Path, wanted: int) -> None:
    """Refuse weights in a file that does not stand in the model's folder, or does not hold them."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place, name = entries.get("location", ""), f"its tensor `{tensor.name[:80]}`"
    target = Path(os.path.realpath(folder / place))
    if not place or os.path.isabs(place) or not target.is_relative_to(folder):
        raise _refused(
            path,
            f"keeps {name} in {place[:100]!r}, which does not lie in its folder",
            "Put the file beside the model, and name it without a path.",
        )
    if not target.is_file():
        raise _refused(path, f"keeps {name} in {place[:100]!r}, and there is no such file", "Put it beside the model.")
    try:
        start, length = int(entries.get("offset") or 0), int(entries.get("length") or wanted)
    except ValueError:
        raise _refused(path, f"is broken: where {name} lies is no number") from None
    size = target.stat().st_size
    if length != wanted or start < 0 or start + length > size:
        raise _refused(
            path, f"is broken: {name} asks for {wanted} bytes, and {place[:100]!r} of {size} bytes does not hold them"
        )


def _check_names(graph: onnx.GraphProto, outside: frozenset[str], path: Path) -> None:
    """Refuse a graph that reads what nothing gives, or gives something twice."""
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made: set[str] = set()
    for node in graph.node:
        for output in node.output:
            if output and (output in made or output in known):
                raise _refused(path, f"is broken: two things give `{output[:80]}`")
            made.add(output)
    every = outside | known | made
    for node in graph.node:
        for read in node.input:
            if read and read not in every:
                raise _refused(
                    path, f"is broken: `{(node.name or node.op_type)[:80]}` reads `{read[:80]}`, which nothing gives"
                )
        for body in bodies(node):
            _check_names(body, frozenset(every), path)
    for value in graph.output:
        if value.name not in every:
            raise _refused(path, f"is broken: it returns `{value.name[:80]}`, which nothing gives")


# --- writing -----------------------------------------------------------------------------------------------------


def keeps_weights_apart(model: ir.Model) -> bool:
    """Whether a model is written with its weights in a file beside it: as they were, or since they are too many."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    held = [tensor for tensor in tensors if tensor is not None]
    apart = model.meta.get(_APART, False) or any(isinstance(tensor, ir.ExternalTensor) for tensor in held)
    return apart or weight_bytes(model) > 2**31 - 2**20


def weight_bytes(model: ir.Model) -> int:
    """Return how many bytes the weights of a model take."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def write_onnx(
    model: Any, path: Path, *, inputs: Sequence[Path] = (), force: bool = False, apart: bool = False
) -> list[Written]:
    """Write a model, whole or not at all: weights that stand apart are streamed to ``NAME.onnx.data``.

    Args:
        model: an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        path: of the file.
        inputs: files that are not to be overwritten.
        force: whether a file that exists is.
        apart: write the weights of an ``onnx_ir.Model`` apart, wherever they were.

    Raises:
        FileAccessError: the file exists and ``force`` is not given, or it cannot be written.
    """
    if isinstance(model, onnx.ModelProto):
        from bnfold.files.formats import onnx_output

        return write_outputs([onnx_output(path, model)], inputs=inputs, force=force)
    if not apart and not keeps_weights_apart(model):
        return write_outputs([Output(path, ir.to_proto(model).SerializeToString())], inputs=inputs, force=force)

    def write(folder: Path) -> None:
        ir.save(model, folder / path.name, external_data=f"{path.name}.data")

    return write_staged([path, path.with_name(f"{path.name}.data")], write, inputs=inputs, force=force)
