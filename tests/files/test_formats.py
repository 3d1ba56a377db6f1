"""Each kind of output loads again, and is checked before it is put in place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from bnfold.errors import ExportError, FileAccessError
from bnfold.files.formats import onnx_output, program_output, text_output, weights_output
from bnfold.files.programs import module_of_program
from bnfold.files.safetensors_reader import FORMATS
from bnfold.files.save import Output, Sidecar, chunks, size_of, write_outputs


def linear_model(size: int = 50, seed: int = 0) -> tuple[onnx.ModelProto, torch.Tensor]:
    """Return ``y = x @ weight`` with its weight, which stands in a constant of the graph."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    shape = ["N", size]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), weight


def run(path: Path, x: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("limit", [1 << 30, 1000])
def test_an_onnx_model_runs_with_its_weights_inside_or_beside_it(limit: int, tmp_path: Path) -> None:
    model, weight = linear_model()
    before = model.SerializeToString(deterministic=True)
    written = write_outputs([onnx_output(tmp_path / "m.onnx", model, limit=limit)], inputs=[], force=False)
    assert model.SerializeToString(deterministic=True) == before, "the model given is not changed"
    assert [one.path.name for one in written] == (["m.onnx"] if limit > 1000 else ["m.onnx", "m.onnx.data"])
    x = torch.randn(3, 50)
    assert torch.allclose(run(tmp_path / "m.onnx", x), x @ weight, rtol=1e-5, atol=1e-5)
    assert written[0].size < 1000 or limit > 1000


def test_the_sidecar_is_named_relative_to_the_model(tmp_path: Path) -> None:
    output = onnx_output(tmp_path / "deep" / "m.onnx", linear_model()[0], limit=1000)
    model = onnx.ModelProto.FromString(bytes(output.content))
    places = {entry.key: entry.value for entry in model.graph.initializer[0].external_data}
    assert places == {"location": "m.onnx.data", "offset": "0", "length": str(50 * 50 * 4)}
    assert [sidecar.name for sidecar in output.sidecars] == ["m.onnx.data"]


def test_a_model_and_its_sidecar_can_be_replaced(tmp_path: Path) -> None:
    for seed in (1, 2):
        model, weight = linear_model(seed=seed)
        write_outputs([onnx_output(tmp_path / "m.onnx", model, limit=1000)], inputs=[], force=True)
        x = torch.randn(3, 50)
        assert torch.allclose(run(tmp_path / "m.onnx", x), x @ weight, rtol=1e-5, atol=1e-5)


def test_weights_in_subgraphs_and_attributes_go_to_the_sidecar_too() -> None:
    model, weight = linear_model()
    tensor = onnx.numpy_helper.from_array(weight.numpy(), "inner")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["inner"], ["z"])], "inner", [], [], [tensor])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["k"], value=tensor))
    output = onnx_output(Path("m.onnx"), model, limit=1000)
    assert len(output.content) < 2000
    assert len(output.sidecars[0].content) >= 4 * 50 * 50 * 4


def test_a_model_with_a_sidecar_is_the_same_but_for_where_its_weights_are() -> None:
    model, weight = linear_model()
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("scalar", onnx.TensorProto.FLOAT, []))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("unknown", onnx.TensorProto.FLOAT, None))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("numbers", [1, 2]))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("words", ["a", "b"]))
    model.metadata_props.add(key="k", value="v")
    output = onnx_output(Path("m.onnx"), model, limit=1000)
    copy = onnx.ModelProto.FromString(bytes(output.content))
    tensor = copy.graph.initializer[0]
    assert tensor.dims == [50, 50]
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = bytes(output.sidecars[0].content)
    assert tensor.raw_data == weight.numpy().tobytes()
    assert copy == model


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b""])
def test_a_sidecar_that_does_not_hold_the_weights_is_noticed(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    output = onnx_output(tmp_path / "m.onnx", linear_model()[0], limit=1000)
    sidecar = output.sidecars[0]
    broken = Output(output.path, output.content, output.check, (Sidecar(sidecar.name, change(bytes(sidecar.content))),))
    with pytest.raises(FileAccessError, match=r"m\.onnx was not written: it does not load again"):
        write_outputs([broken], inputs=[], force=False)
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_weights_are_elsewhere_is_not_written() -> None:
    model, _ = linear_model()
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ExportError, match="another file"):
        onnx_output(Path("m.onnx"), model)


def test_a_broken_onnx_model_is_not_put_in_place(tmp_path: Path) -> None:
    model, _ = linear_model()
    model.graph.node[0].op_type = "NoSuchOp"
    with pytest.raises(FileAccessError, match=r"m\.onnx was not written: it does not load again.*NoSuchOp"):
        write_outputs([onnx_output(tmp_path / "m.onnx", model)], inputs=[], force=False)
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_written_and_loads(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    x = torch.randn(2, 1, 6, 6)
    write_outputs(
        [program_output(tmp_path / "m.pt2", torch.export.export(model, (x,), strict=False))], inputs=[], force=False
    )
    with (tmp_path / "m.pt2").open("rb") as file:
        assert torch.equal(module_of_program(file)(x), model(x))


def test_a_broken_program_is_not_put_in_place(tmp_path: Path) -> None:
    output = program_output(tmp_path / "m.pt2", torch.export.export(nn.ReLU(), (torch.ones(2),), strict=False))
    damaged = Output(output.path, bytes(output.content)[:-30], output.check)
    with pytest.raises(FileAccessError, match="does not load again"):
        write_outputs([damaged], inputs=[], force=False)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_written_and_load_however_they_share_memory(tmp_path: Path) -> None:
    import safetensors.torch

    base = torch.randn(4, 6)
    tensors: dict[str, Any] = {"a": base, "same": base, "row": base[1], "t": base.t(), "empty": torch.ones(0, 2)}
    tensors["parameter"] = nn.Parameter(base.bfloat16())
    write_outputs([weights_output(tmp_path / "m.safetensors", tensors)], inputs=[], force=False)
    found = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_text_with_lone_surrogates_is_written(tmp_path: Path) -> None:
    write_outputs([text_output(tmp_path / "r.json", "\ud800 \u00e4")], inputs=[], force=False)
    assert (tmp_path / "r.json").read_bytes() == b"\\ud800 \xc3\xa4"


def test_outputs_can_be_written_from_another_thread(tmp_path: Path) -> None:
    thread = threading.Thread(
        target=lambda: write_outputs([text_output(tmp_path / "a", "text")], inputs=[], force=False)
    )
    thread.start()
    thread.join()
    assert (tmp_path / "a").read_text() == "text"


def test_weights_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    tensors = {
        f"{number}.\u00e9": torch.arange(6).reshape(2, 3).to(dtype) for number, dtype in enumerate(FORMATS.values())
    }
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 2), 'a"b': torch.ones(2)}
    tensors["last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors["conjugate"] = torch.randn(3, dtype=torch.complex64).conj()
    tensors["negative"] = tensors["conjugate"].imag
    tensors["part of last"] = tensors["last"][:1, :, 1:]
    output = weights_output(tmp_path / "w.safetensors", tensors)
    own = {
        name: tensor.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
        for name, tensor in tensors.items()
    }
    assert b"".join(chunks(output.content)) == safetensors.torch.save(own, metadata={"format": "pt"})
    (written,) = write_outputs([output], inputs=[], force=False)
    assert written.size == (tmp_path / "w.safetensors").stat().st_size == size_of(output.content)
