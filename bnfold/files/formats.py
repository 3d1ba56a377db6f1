"""The kinds of file that bnfold writes: each complete in memory, with the check that its users' library can open it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import ExportError, first_line
from bnfold.files.save import Output, Parts, Sidecar
from bnfold.printable import bytes_in_words, shown_path

if TYPE_CHECKING:
    import onnx
    from torch import Tensor
    from torch.export import ExportedProgram

__all__ = ["APART", "PROTOBUF_LIMIT", "onnx_output", "program_output", "text_output", "weights_output"]

PROTOBUF_LIMIT = 2**31 - 2**20
"""One protobuf message holds less than 2 GiB; the margin is for what a size estimate misses."""

APART = 2**29
"""Bytes of weights above which they stand in a file beside the model: from there they are mapped, and never copied."""

_READ = 4 << 20

_ALIGNMENT = 4096  # a page, so that a reader can map each tensor
_SMALL = 1024  # tensors below this stay in the model


def text_output(path: Path, text: str) -> Output:
    """Return a text file, in UTF-8."""
    return Output(path, text.encode("utf-8", "backslashreplace"))


def weights_output(path: Path, tensors: Mapping[str, Tensor]) -> Output:
    """Return a .safetensors file of ``tensors``; those that share memory are written each on its own.

    The bytes are those of the format's own library, which would hold all of them once more: here each tensor is written
    from where it lies.
    """
    import safetensors.torch

    from bnfold.files.safetensors_reader import FORMATS

    names = {dtype: name for name, dtype in FORMATS.items()}
    if any(tensor.dtype not in names or tensor.is_sparse for tensor in tensors.values()):
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return Output(path, safetensors.torch.save(own, metadata={"format": "pt"}), _check_weights)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order = sorted(tensors, key=lambda name: (-_rank(names[tensors[name].dtype]), name))
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def parts() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in order:
            yield _bytes_of(tensors[name])

    return Output(path, Parts(parts, 8 + len(text) + end), _check_weights)


def _rank(name: str) -> int:
    """Return where a number format stands in the library's list; the later ones are written first."""
    return _LIBRARY_ORDER.index(name)


_LIBRARY_ORDER = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64")


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, in order; a copy only where they do not lie so."""
    import torch

    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    array: Any = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else b""
    return memoryview(array)


def program_output(path: Path, program: ExportedProgram) -> Output:
    """Return a .pt2 file of an exported program.

    It is serialised to memory, since ``torch.export.save`` to a path aborts the process when the disk is full.
    """
    import torch

    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return Output(path, buffer.getbuffer(), _check_program)


def onnx_output(path: Path, model: onnx.ModelProto | Path, *, limit: int = APART) -> Output:
    """Return an .onnx file, its weights in one sidecar ``NAME.onnx.data`` beside it where it exceeds ``limit`` bytes.

    Args:
        path: where to; the sidecar is named after it and found by that name alone, in the same folder.
        model: not modified; or the path of one that was written elsewhere, with its sidecar.
        limit: in bytes; a protobuf message cannot hold 2 GiB.

    Raises:
        ExportError: the model's weights stand in a file elsewhere, or it is too large without its weights too.
    """
    import onnx

    if isinstance(model, Path):
        beside = model.with_name(f"{model.name}.data")
        rest = onnx.load(model, load_external_data=False)
        for tensor in _tensors_of(rest):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"{path.name}.data"
        return Output(path, _serialised(rest, path), _check_onnx, (Sidecar(f"{path.name}.data", _file(beside)),))
    every = list(_tensors_of(model))
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in every):
        raise ExportError(
            f"The ONNX model for {shown_path(path)} keeps weights in another file.",
            fix="Load them into the model first.",
        )
    if sum(len(tensor.raw_data) for tensor in every) <= limit:
        content = _serialised(model, path)
        if len(content) <= limit:
            return Output(path, content, _check_onnx)
    del every
    outside = onnx.ModelProto()
    sidecar = Sidecar(f"{path.name}.data", bytearray())
    _copy_without_weights(model, outside, sidecar)
    return Output(path, _serialised(outside, path), _check_onnx, (sidecar,))


def _file(path: Path) -> Parts:
    """Return the content of a file, read as it is needed."""

    def parts() -> Iterator[bytes]:
        with open(path, "rb") as file:
            while part := file.read(_READ):
                yield part

    return Parts(parts, path.stat().st_size)


def _copy_without_weights(source: Any, copy: Any, sidecar: Sidecar) -> None:
    """Copy a protobuf message field by field, its large tensors' bytes to the sidecar.

    The model is not emptied and filled again: protobuf gives memory back only with the whole message, so that each
    byte that is set anew is held once more.
    """
    from onnx import TensorProto

    large = isinstance(source, TensorProto) and len(source.raw_data) >= _SMALL
    for field, value in source.ListFields():
        if large and field.name == "raw_data":
            _move(value, copy, sidecar)
        elif hasattr(value, "ListFields"):
            getattr(copy, field.name).SetInParent()  # an empty message is not the same as none: a scalar's shape
            _copy_without_weights(value, getattr(copy, field.name), sidecar)
        elif isinstance(value, (str, bytes, int, float)):
            setattr(copy, field.name, value)
        elif hasattr(value[0], "ListFields"):
            for part in value:
                _copy_without_weights(part, getattr(copy, field.name).add(), sidecar)
        else:
            getattr(copy, field.name).extend(value)


def _move(raw: bytes, tensor: onnx.TensorProto, sidecar: Sidecar) -> None:
    """Put a tensor's bytes into the sidecar, and their place into the tensor."""
    data = sidecar.content
    assert isinstance(data, bytearray)
    data.extend(bytes(-len(data) % _ALIGNMENT))
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", sidecar.name), ("offset", str(len(data))), ("length", str(len(raw)))):
        tensor.external_data.add(key=key, value=value)
    data.extend(raw)


def _serialised(model: onnx.ModelProto, path: Path) -> bytes:
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except Exception as error:
        raise ExportError(
            f"The ONNX model for {shown_path(path)} cannot be written: {first_line(error, typed=True)}.",
            fix=f"Without its weights a model must stay below {bytes_in_words(PROTOBUF_LIMIT)}.",
        ) from error
    return content


def _tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: in the graph, in its nodes, in graphs inside of them, and in functions."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors_of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _tensors_of_graph(graph)


def _check_onnx(path: Path) -> None:
    import onnx

    onnx.checker.check_model(str(path))
    for tensor in _tensors_of(onnx.load(str(path), load_external_data=False)):  # one at a time: they may be gigabytes
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.numpy_helper.to_array(tensor, str(path.parent))


def _check_program(path: Path) -> None:
    from bnfold.files.programs import module_of_program

    with open(path, "rb") as file:
        module_of_program(file)


def _check_weights(path: Path) -> None:
    import safetensors

    with safetensors.safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no dict
            file.get_tensor(name)
