"""The kinds of file that bnfold writes: each complete in memory, with the check that its users' library can open it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import ExportError
from bnfold.files.save import Output, Sidecar
from bnfold.files.words import bytes_in_words, reason_of, shown_path

if TYPE_CHECKING:
    import onnx
    from torch import Tensor
    from torch.export import ExportedProgram

__all__ = ["onnx_output", "program_output", "text_output", "weights_output"]

PROTOBUF_LIMIT = 2**31 - 2**20
"""One protobuf message holds less than 2 GiB; the margin is for what a size estimate misses."""

_ALIGNMENT = 4096  # a page, so that a reader can map each tensor
_SMALL = 1024  # tensors below this stay in the model


def text_output(path: Path, text: str) -> Output:
    """Return a text file, in UTF-8."""
    return Output(path, text.encode("utf-8", "backslashreplace"))


def weights_output(path: Path, tensors: Mapping[str, Tensor]) -> Output:
    """Return a .safetensors file of ``tensors``; those that share memory are written each on its own."""
    import safetensors.torch

    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        own[name] = plain.clone() if place in seen else plain
        seen.add(place)
    content: bytes = safetensors.torch.save(own, metadata={"format": "pt"})
    return Output(path, content, _check_weights)


def program_output(path: Path, program: ExportedProgram) -> Output:
    """Return a .pt2 file of an exported program.

    It is serialised to memory, since ``torch.export.save`` to a path aborts the process when the disk is full.
    """
    import torch

    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return Output(path, buffer.getbuffer(), _check_program)


def onnx_output(path: Path, model: onnx.ModelProto, *, limit: int = PROTOBUF_LIMIT) -> Output:
    """Return an .onnx file, its weights in one sidecar ``NAME.onnx.data`` beside it where it exceeds ``limit`` bytes.

    Args:
        path: where to; the sidecar is named after it and found by that name alone, in the same folder.
        model: not modified.
        limit: in bytes; a protobuf message cannot hold 2 GiB.

    Raises:
        ExportError: the model's weights stand in a file elsewhere, or it is too large without its weights too.
    """
    import onnx

    every = list(_tensors_of(model))
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in every):
        raise ExportError(
            f"The ONNX model for {shown_path(path)} keeps weights in another file.",
            fix="Load them into the model first.",
        )
    large = [tensor for tensor in every if len(tensor.raw_data) >= _SMALL]
    if sum(len(tensor.raw_data) for tensor in large) <= limit:
        content = _serialised(model, path)
        if len(content) <= limit:
            return Output(path, content, _check_onnx)
    name = f"{path.name}.data"
    data = bytearray()
    moved: list[tuple[onnx.TensorProto, bytes]] = []
    try:
        for tensor in large:
            raw = tensor.raw_data
            data.extend(bytes(-len(data) % _ALIGNMENT))
            moved.append((tensor, raw))
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", name), ("offset", str(len(data))), ("length", str(len(raw)))):
                tensor.external_data.add(key=key, value=value)
            data.extend(raw)
        content = _serialised(model, path)
    finally:
        for tensor, raw in moved:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = raw
    return Output(path, content, _check_onnx, (Sidecar(name, data),))


def _serialised(model: onnx.ModelProto, path: Path) -> bytes:
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except Exception as error:
        raise ExportError(
            f"The ONNX model for {shown_path(path)} cannot be written: {reason_of(error)}.",
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
    onnx.load(str(path))


def _check_program(path: Path) -> None:
    from bnfold.files.programs import module_of_program

    with open(path, "rb") as file:
        module_of_program(file)


def _check_weights(path: Path) -> None:
    import safetensors

    with safetensors.safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no dict
            file.get_tensor(name)
