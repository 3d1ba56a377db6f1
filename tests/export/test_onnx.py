"""ONNX and torch.export: dynamic batch, names, quiet, the same bytes each time, and clear refusals."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from bnfold.errors import ExportError, FileAccessError, TrainingModeError, UsageError
from bnfold.export import StaticBatchWarning, export_onnx, onnx_of, to_onnx, to_program
from tests.networks import NETWORKS, normal, seed_network


def run(model: onnx.ModelProto, *inputs: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(
        None, dict(zip([i.name for i in session.get_inputs()], [x.numpy() for x in inputs], strict=True))
    )


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@functools.cache
def exported_seed() -> onnx.ModelProto:
    return to_onnx(seed_network(), normal(1, 1, 28, 28))


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.long), 5])
def test_the_batch_is_dynamic_whatever_the_example(batch):
    model = exported_seed() if batch == 1 else to_onnx(seed_network(), normal(batch, 1, 28, 28))
    assert dimensions(model.graph.input[0]) == ["batch", 1, 28, 28]
    assert dimensions(model.graph.output[0]) == ["batch", 10]
    for size in (1, 2, 3, 7):
        assert run(model, normal(size, 1, 28, 28))[0].shape == (size, 10)


def test_a_program_runs_at_every_batch_size():
    network = seed_network()
    program = to_program(network, normal(1, 1, 28, 28))
    for size in (1, 2, 3):
        x = normal(size, 1, 28, 28)
        torch.testing.assert_close(program.module()(x), network(x), rtol=0, atol=0)


def test_unoptimised_the_batchnorm_stays_after_its_conv():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    plain = [node.op_type for node in to_onnx(network, normal(1, 3, 8, 8), optimize=False).graph.node]
    assert plain == ["Conv", "BatchNormalization"]


def test_the_same_module_gives_the_same_bytes():
    again = to_onnx(seed_network(), normal(1, 1, 28, 28))
    assert again.SerializeToString() == exported_seed().SerializeToString()


@pytest.mark.long
def test_another_process_gives_the_same_bytes():
    code = (
        "import hashlib; from bnfold.export import to_onnx; from tests.networks import NETWORKS\n"
        "for name in ('seed', 'dense', 'several-outputs'):\n"
        "    model, inputs = NETWORKS[name]()\n"
        "    print(hashlib.sha256(to_onnx(model, inputs).SerializeToString()).hexdigest())\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_nothing_is_printed_and_nothing_warned(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(nn.Conv2d(1, 2, 3).eval(), normal(1, 1, 8, 8))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_no_path_of_the_exporting_machine_is_in_the_file():
    content = exported_seed().SerializeToString()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_the_layers_can_still_be_told():
    conv = next(node for node in exported_seed().graph.node if node.op_type == "Conv")
    assert "conv1" in next(entry.value for entry in conv.metadata_props if entry.key == "namespace")


class Pair(NamedTuple):
    sum: torch.Tensor
    difference: torch.Tensor


class Nested(nn.Module):
    def forward(self, x, scale, unused, exponent, mask):
        y = (x * scale) ** exponent
        return {"logits": y, "x": [y + 1, x], "same": y, "none": None, "number": 3, "arg": y.argmax(1), "m": mask}


def test_inputs_and_outputs_have_the_names_of_the_model():
    inputs = (normal(1, 3), torch.tensor(2.0), normal(1, 5), 2, torch.ones(1, 3).bool())
    exported = onnx_of(Nested().eval(), inputs)
    graph = exported.model.graph
    assert [value.name for value in graph.input] == ["x", "scale", "unused", "mask"]
    assert [value.name for value in graph.output] == ["logits", "x_0", "x_1", "same", "arg", "m"]
    assert [dimensions(value) for value in graph.input] == [["batch", 3], [], ["batch", 5], ["batch", 3]]
    assert exported.notes == ("The ONNX export leaves out 2 outputs, which are no tensors.",)
    x = normal(3, 3)
    outputs = run(exported.model, x, torch.tensor(3.0), normal(3, 5), torch.ones(3, 3).bool())
    np.testing.assert_allclose(outputs[1], ((x * 3) ** 2 + 1).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(outputs[2], x.numpy())


class Named(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.conv, self.result = nn.Conv2d(2, 2, 1), result

    def forward(self, x):
        return self.result(self.conv(x))


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (lambda y: y, ["output"]),
        pytest.param(lambda y: (y,), ["output"], marks=pytest.mark.long),
        pytest.param(lambda y: (y, y + 1), ["output_0", "output_1"], marks=pytest.mark.long),
        pytest.param(lambda y: Pair(y + y, y - 1), ["sum", "difference"], marks=pytest.mark.long),
        (lambda y: {"conv2d": y + 1, "x": y, "a b": y * 2}, ["conv2d", "output_x", "a_b"]),
        (lambda y: {"a": (y, [y + 1])}, ["a_0", "a_1_0"]),
    ],
)
def test_outputs_are_named_by_the_way_to_them(result, names):
    model = to_onnx(Named(result).eval(), normal(1, 2, 4, 4))
    assert [value.name for value in model.graph.output] == names
    assert len(run(model, normal(3, 2, 4, 4))) == len(names)


class SumOfAll(nn.Module):
    def forward(self, first, *rest):
        return first + sum(rest)


def test_a_forward_with_any_number_of_inputs_is_exported():
    model = to_onnx(SumOfAll().eval(), (normal(1, 3), normal(1, 3), normal(1, 3)))
    assert [dimensions(value) for value in model.graph.input] == [["batch", 3]] * 3


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.view(1, 8) * 2


def test_a_model_that_fixes_the_batch_is_exported_with_a_warning():
    with pytest.warns(StaticBatchWarning, match="runs at batch size 1 only"):
        model = to_onnx(FixedBatch().eval(), normal(1, 8))
    assert dimensions(model.graph.input[0]) == [1, 8]
    with pytest.warns(StaticBatchWarning, match="runs at batch size 1 only"):
        to_program(FixedBatch().eval(), normal(1, 8))


class Table(nn.Module):
    def forward(self, x, table):
        return x @ table


def test_an_input_that_only_happens_to_be_as_long_as_the_batch_stays_as_it_is():
    exported = onnx_of(Table().eval(), (normal(4, 4), normal(4, 4)))
    assert [dimensions(value) for value in exported.model.graph.input] == [["batch", 4], [4, 4]]
    assert exported.dynamic_batch


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_captured_is_refused_in_one_sentence_and_quietly(capfd):
    with pytest.raises(ExportError, match=r"torch.export cannot capture this DataDependent: .*data-dependent"):
        to_onnx(DataDependent().eval(), normal(1, 8))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


class NoSuchOnnx(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named():
    with pytest.raises(ExportError, match="bessel_j0") as caught:
        to_onnx(NoSuchOnnx().eval(), normal(1, 8))
    assert "\n" not in str(caught.value)


def test_a_module_in_training_mode_is_refused():
    network = seed_network()
    network.bn1.train()
    with pytest.raises(TrainingModeError, match=r"training mode, .* \(bn1: normalises by its batch\)"):
        to_onnx(network, normal(1, 1, 28, 28))


def test_exporting_leaves_the_modes_of_the_parts_as_they_are():
    network = seed_network()
    network.training = True
    to_onnx(network, normal(1, 1, 28, 28))
    assert network.training
    assert not any(part.training for part in network.children())


def test_inputs_without_a_tensor_are_refused():
    with pytest.raises(UsageError, match="No example inputs"):
        to_onnx(seed_network(), None)
    with pytest.raises(UsageError, match="hold no tensor"):
        to_onnx(seed_network(), (1, 2))


class KnowsItsTarget(nn.Module):
    def forward(self, x):
        return x * 2 if torch.onnx.is_in_onnx_export() else x


def test_a_layer_can_tell_that_it_is_exported_to_onnx():
    module, x = KnowsItsTarget().eval(), normal(2, 3)
    assert run(to_onnx(module, x), x)[0] == pytest.approx((x * 2).numpy())
    assert torch.equal(to_program(module, x).module()(x), x)
    assert not torch.onnx.is_in_onnx_export()


def test_the_model_is_not_changed():
    network = seed_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    to_onnx(network, normal(1, 1, 28, 28))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_a_file_is_written_and_replaced_whole(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    export_onnx(seed_network(), path, normal(1, 1, 28, 28))
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(FileAccessError, match="no folder"):
        export_onnx(seed_network(), tmp_path / "no" / "model.onnx", normal(1, 1, 28, 28))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "dense" else pytest.mark.long) for n in NETWORKS])
def test_every_network_computes_the_same_after_export(name):
    network, inputs = NETWORKS[name]()
    expected = network(*inputs)
    wanted = list(expected.values()) if isinstance(expected, dict) else [expected]
    for got, want in zip(run(to_onnx(network, inputs), *inputs), wanted, strict=True):
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-3, atol=1e-4 * float(want.detach().abs().max()))
