"""Exports with free sizes: what a model takes, the file takes; what it does not is said, and is never wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
import bnfold.export
from bnfold.errors import ExportError, UsageError
from bnfold.export import export_onnx, export_program, onnx_of, to_onnx
from bnfold.export.axes import Axis, free_sizes, resized
from bnfold.export.dynamic import Wanted, wanted
from bnfold.export.program import SizeWarning
from bnfold.export.tried import _elsewhere, goes_wrong
from tests.networks import normal


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return module.eval()


class Halves(nn.Module):
    """Halves the size twice and joins the halves again."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.two = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        return torch.cat([one, F.interpolate(self.two(one), scale_factor=2)], 1)


class Turned(nn.Module):
    """Adds an image to itself turned: only square ones can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.bn(self.conv(x)).transpose(2, 3)


class Asks(nn.Module):
    """Decides on its width, in a way that the example does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y * 2 if x.shape[3] == 20 else y


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.permute(0, 3, 1, 2)))


def layers(dims: int, *more: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    return randomised(nn.Sequential(conv(3, 4, 3), norm(4), *more))


def folded(module: nn.Module, x: Tensor) -> nn.Module:
    return bnfold.fold(randomised(module), x, check=False).module


def run(model: onnx.ModelProto, *inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, dict(zip(names, [x.numpy() for x in inputs], strict=True)))


def dimensions(value: onnx.ValueInfoProto) -> list[str | int | None]:
    return [d.dim_param or (d.dim_value if d.HasField("dim_value") else None) for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    ("dims", "names"), [(1, ["length"]), (2, ["height", "width"]), (3, ["depth", "height", "width"])]
)
def test_free_sizes_bear_their_names_and_the_file_runs_at_others(dims: int, names: list[str]) -> None:
    x = normal(2, 3, *[9 + 2 * n for n in range(dims)])
    module = folded(layers(dims), x)
    model = to_onnx(module, x, dynamic=("batch", "size"))
    assert dimensions(model.graph.input[0]) == ["batch", 3, *names]
    assert dimensions(model.graph.output[0]) == ["batch", 4, *[None] * dims]  # left to ONNX's shape inference
    other = normal(3, 3, *[13 - n for n in range(dims)])
    np.testing.assert_allclose(run(model, other)[0], module(other).detach().numpy(), atol=1e-5)


def test_what_is_halved_twice_takes_multiples_of_four_and_says_so() -> None:
    x = normal(2, 3, 16, 24)
    module = folded(Halves(), x)
    exported = onnx_of(module, x, dynamic=("batch", "size"))
    assert [(axis.name, axis.step, axis.most) for axis in exported.axes] == [
        ("batch", 1, None),
        ("height", 4, None),
        ("width", 4, None),
    ]
    assert exported.notes == ("The height and the width must be 8 or more, a multiple of 4.",)
    other = normal(1, 3, 20, 12)
    np.testing.assert_allclose(run(exported.model, other)[0], module(other).detach().numpy(), atol=1e-5)


def test_square_ones_alone_are_one_dimension_and_said_to_be() -> None:
    x = normal(2, 3, 12, 12)
    module = folded(Turned(), x)
    exported = onnx_of(module, x, dynamic=("batch", "size"))
    assert dimensions(exported.model.graph.input[0]) == ["batch", 3, "height", "height"]
    assert exported.notes == ("The height must be 4 or more.", "Height and width must be equal.")
    other = normal(1, 3, 9, 9)
    np.testing.assert_allclose(run(exported.model, other)[0], module(other).detach().numpy(), atol=1e-5)


def test_a_size_that_code_decides_on_bounds_the_export_and_is_never_wrong() -> None:
    x = normal(2, 3, 16, 16)
    exported = onnx_of(folded(Asks(), x), x, dynamic=("batch", "size"))
    width = next(axis for axis in exported.axes if axis.name == "width")
    assert (width.least, width.most) == (4, 19)
    assert exported.notes == ("The height must be 4 or more.", "The width must be 4 or more, at most 19.")
    beyond = export_program(folded(Asks(), x), x, dynamic=("batch", "size")).program.module()
    with pytest.raises(Exception, match=r"20|captured"):
        beyond(normal(1, 3, 16, 20))


def test_channels_may_stand_last() -> None:
    x = normal(2, 12, 10, 3)
    model = to_onnx(folded(ChannelsLast(), x), x, dynamic=("batch", "size"))
    assert dimensions(model.graph.input[0]) == ["batch", "height", "width", 3]


def test_a_model_that_takes_one_size_says_so_itself() -> None:
    x = normal(2, 3, 8, 8)
    module = folded(layers(2, nn.Flatten(), nn.Linear(4 * 36, 2)), x)
    free = free_sizes(module, (x,))
    assert free.axes == ()
    assert "`3`" in free.why_fixed["height"]
    with pytest.raises(ExportError, match="The model itself takes no other size: `3`"):
        to_onnx(module, x, dynamic=("batch", "size"))
    quietly = onnx_of(module, x, dynamic=Wanted(size=True))  # not by name: the file is for this size
    assert dimensions(quietly.model.graph.input[0]) == ["batch", 3, 8, 8]
    assert quietly.notes == ()


def test_a_model_that_takes_a_larger_image_for_more_images_takes_one_size() -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 4 * 36)

    x = normal(2, 3, 8, 8)
    module = folded(layers(2, Rows(), nn.Linear(4 * 36, 2)), x)
    assert module(normal(2, 3, 14, 14)).shape[0] == 8  # it runs
    assert free_sizes(module, (x,)).axes == ()
    with pytest.raises(ExportError, match="itself takes no other size"):
        to_onnx(module, x, dynamic=("batch", "size"))
    assert onnx_of(module, x, dynamic=Wanted(size=True)).notes == ()


def test_a_width_that_is_as_long_as_the_batch_by_chance_may_be_free() -> None:
    class WidthFirst(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean(2).permute(2, 0, 1), torch.arange(x.shape[2])

    x = normal(6, 3, 8, 8)
    module = folded(layers(2, WidthFirst()), x)
    assert [rows.shape[0] for rows in module(x)] == [6, 6]
    free = free_sizes(module, (x,))
    assert (len(free.axes), free.why_fixed) == (2, {})


def test_adaptive_pooling_that_onnx_lacks_is_named_and_told_from_the_models_own_refusals() -> None:
    x = normal(2, 3, 16, 16)
    module = folded(layers(2, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(4 * 49, 2)), x)
    module(normal(1, 3, 30, 21))  # the model takes it
    with pytest.raises(ExportError, match=r"although the model takes others: ONNX has no adaptive pooling to 7.* `2`"):
        to_onnx(module, x, dynamic=("batch", "size"))
    quietly = onnx_of(module, x, dynamic=Wanted(size=True))
    assert dimensions(quietly.model.graph.input[0]) == ["batch", 3, 16, 16]
    assert any("ONNX has no adaptive pooling to 7, which `2` does" in note for note in quietly.notes)
    assert [axis.name for axis in export_program(module, x, dynamic=Wanted(size=True)).axes] == [
        "batch",
        "height",
        "width",
    ]


def test_an_exporter_that_takes_the_size_for_a_constant_is_found_out() -> None:
    x = normal(2, 3, 16, 16)
    module = folded(layers(2, nn.AdaptiveMaxPool2d((2, 7))), x)  # no Linear behind: it would run, and be wrong
    with pytest.raises(ExportError, match=r"adaptive pooling to 2x7"):
        to_onnx(module, x, dynamic=("size",))


def test_nothing_is_free_where_nothing_is_to_be() -> None:
    x = normal(2, 3, 8, 8)
    module = folded(layers(2), x)
    assert dimensions(to_onnx(module, x, dynamic=()).graph.input[0]) == [2, 3, 8, 8]
    assert dimensions(to_onnx(module, x, dynamic="none").graph.input[0]) == [2, 3, 8, 8]
    assert dimensions(to_onnx(module, x, dynamic=("size",)).graph.input[0]) == [2, 3, "height", "width"]


def test_a_batch_that_is_named_and_cannot_be_free_is_an_error() -> None:
    class OneByOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.bn(self.conv(image[None]))[0] for image in x])

    x = normal(2, 3, 8, 8)
    with pytest.raises(ExportError, match=r"The batch cannot stay free: `x.shape\[0\] == 2` holds"):
        to_onnx(folded(OneByOne(), x), x, dynamic=("batch", "size"))


def test_torchs_own_dynamic_shapes_serve_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)

        def forward(self, wave: Tensor, weight: Tensor) -> Tensor:
            return self.bn(self.conv(wave)) * weight[:, None]

    inputs = normal(2, 3, 10), normal(2, 10)
    module = bnfold.fold(randomised(Two()), inputs, check=False).module
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    model = to_onnx(module, inputs, dynamic={"wave": {0: batch, 2: time}, "weight": {0: batch, 1: time}})
    assert [dimensions(value) for value in model.graph.input] == [["batch", 3, "time"], ["batch", "time"]]
    others = normal(3, 3, 7), normal(3, 7)
    np.testing.assert_allclose(run(model, *others)[0], module(*others).detach().numpy(), atol=1e-5)
    with pytest.raises(ExportError, match=r"dynamic_shapes"):
        to_onnx(module, inputs, dynamic={"wave": {0: batch, 2: time}, "weight": {0: batch, 1: None}})


@pytest.mark.parametrize(
    "opset", [15, pytest.param(17, marks=pytest.mark.long), 21, pytest.param(24, marks=pytest.mark.long)]
)
def test_an_opset_is_written_as_asked(opset: int) -> None:
    x = normal(2, 3, 8, 8)
    module = folded(layers(2, nn.ReLU(), nn.AdaptiveAvgPool2d(1)), x)
    model = to_onnx(module, x, opset=opset)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, x)[0], module(x).detach().numpy(), atol=1e-5)


def test_an_opset_that_cannot_be_written_is_said(tmp_path: Any) -> None:
    x = normal(2, 3, 8, 8)
    module = folded(layers(2, nn.ReLU()), x)
    with pytest.raises(ExportError, match=r"cannot be written in opset 9: No Adapter .* for Relu"):
        export_onnx(module, tmp_path / "a.onnx", x, opset=9)
    with pytest.raises(UsageError, match="no opset 999"):
        export_onnx(module, tmp_path / "a.onnx", x, opset=999)
    assert not (tmp_path / "a.onnx").exists()


def test_a_bfloat16_file_is_one_that_onnx_allows_and_is_proved_without_a_runtime() -> None:
    x = normal(2, 3, 8, 8).to(torch.bfloat16)
    module = layers(2, nn.ReLU()).to(torch.bfloat16)
    folding = bnfold.fold(module, x)
    report = bnfold.verify(module, folding.module, x, onnx=True)
    assert report.passed, str(report)
    assert [c.name for c in report.comparisons][-1] == "ONNX, computed in float64"
    wrong = onnx_of(folding.module, x).model
    for tensor in wrong.graph.initializer:
        if tensor.dims == [4]:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[1] *= 1.25
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    assert not bnfold.verify(module, folding.module, x, onnx=wrong).passed


def test_what_may_be_asked_for() -> None:
    assert wanted("batch, size") == Wanted(True, True, frozenset({"batch", "size"}))
    assert wanted(("batch",)) == Wanted(True, False, frozenset())
    assert wanted("none") == wanted(()) == Wanted(False, False, frozenset())
    with pytest.raises(UsageError, match="`hight` is no dimension"):
        wanted("batch,hight")


def test_another_size_keeps_the_steps_and_the_bounds() -> None:
    axes = (Axis("height", ((0, 2),), 64, step=32, least=32), Axis("width", ((0, 3),), 64, step=1, most=70))
    (x,) = resized((normal(2, 3, 64, 64),), axes, torch.Generator()) or ()
    assert tuple(x.shape) == (2, 3, 32, 70)
    fixed = (Axis("height", ((0, 2),), 64, least=64, most=64),)
    assert resized((normal(2, 3, 64, 64),), fixed, torch.Generator()) is None


SHAPES = [(1, 32, 32), (64, 32, 32), (2, 40, 25), (2, 224, 224), (2, 31, 32), (2, 32, 601), (2, 32, 600), (2, 24, 24)]
"""Batch, height and width, among them those that the questions below are about."""


class Branch(nn.Module):
    """Doubles its answer where a question about the sizes says so."""

    def __init__(self, question: str) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.question = question

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        batch, _, height, width = x.shape
        return y * 2 if eval(self.question, {}, {"n": batch, "h": height, "w": width}) else y


@pytest.mark.parametrize(
    "question",
    [
        "w < 20",
        "h * w == 50176",
        "h < w",
        "n == 64",
        *(
            pytest.param(question, marks=pytest.mark.long)
            for question in ("w == 600", "w > 600", "h * w == 1000", "h == w", "h % 8 != 0")
        ),
    ],
)
def test_no_file_is_wrong_at_a_size_that_it_says_it_takes(question: str) -> None:
    """The file is for the sizes at which the model answers as at the example's, or not free at all."""
    x = normal(2, 3, 32, 32)
    original = randomised(Branch(question))
    module = bnfold.fold(original, x, check=False).module
    exported = onnx_of(module, x, dynamic=Wanted(batch=True, size=True))
    session = onnxruntime.InferenceSession(exported.model.SerializeToString(), providers=["CPUExecutionProvider"])
    tried = 0
    for shape in SHAPES:
        if not _takes(exported.axes, shape):
            continue
        other = normal(shape[0], 3, *shape[1:])
        answer = session.run(None, {session.get_inputs()[0].name: other.numpy()})[0]
        with torch.no_grad():
            np.testing.assert_allclose(answer, original(other).numpy(), atol=1e-4)
        tried += 1
    assert tried


def _takes(axes: tuple[Axis, ...], shape: tuple[int, int, int]) -> bool:
    """Whether an export of a 2x3x32x32 example says that it takes a batch, height and width."""
    sizes = {0: shape[0], 2: shape[1], 3: shape[2]}
    for axis in axes:
        of_axis = {sizes.pop(dim) for _, dim in axis.places}
        size = of_axis.pop()
        fits = (size - axis.own) % axis.step == 0 and size <= (axis.most or size)
        if of_axis or not fits or (size < axis.least and axis.name != "batch"):
            return False
    return all(size == {0: 2, 2: 32, 3: 32}[dim] for dim, size in sizes.items())


@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.long), 7])
def test_an_adaptive_pool_whose_shape_is_hidden_is_found_by_uneven_sizes(size: int) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(self.bn(self.conv(x)), size).mean((2, 3))

    x = normal(2, 3, 112, 112)
    with pytest.raises(
        ExportError, match=rf"ONNX has no adaptive pooling to {size}, which `adaptive_avg_pool2d`, at .*py"
    ):
        to_onnx(folded(Hidden(), x), x, dynamic=("batch", "size"))


def test_a_scale_that_float32_rounds_is_no_free_size() -> None:
    x = normal(2, 3, 60, 60)
    with pytest.raises(ExportError, match=r"ONNX keeps the scale 1\.3 in float32, which makes another size of \d+"):
        to_onnx(folded(layers(2, nn.Upsample(scale_factor=1.3)), x), x, dynamic=("size",))
    to_onnx(folded(layers(2, nn.Upsample(scale_factor=1.5)), x), x, dynamic=("size",))


def test_conditions_stand_in_the_file_and_are_warned_of() -> None:
    x = normal(2, 3, 16, 24)
    with pytest.warns(bnfold.export.SizeWarning, match="a multiple of 4"):
        model = to_onnx(folded(Halves(), x), x, dynamic=("batch", "size"))
    (told,) = (entry.value for entry in model.metadata_props if entry.key == "bnfold.sizes")
    assert "a multiple of 4" in told


class Amplifies(nn.Module):
    """Moves a rounding of its input the further, the smaller the input is; at 16x16 it does not."""

    def __init__(self, power: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.power = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), power

    def forward(self, x: Tensor) -> Tensor:
        area = torch.ones_like(x[:, :1]).sum((2, 3), keepdim=True) / 256
        return torch.sin(self.bn(self.conv(x)).mean((2, 3), keepdim=True) / area**self.power)


def test_a_network_that_amplifies_its_own_rounding_at_another_size_keeps_its_size_free() -> None:
    """The yardstick is how far the network itself moves there; what is wrong moves further."""
    model, x = randomised(Amplifies(80)), torch.randn(2, 3, 16, 16)
    made = onnx_of(model, x, dynamic=Wanted(batch=True, size=True))
    assert [axis.name for axis in made.axes] == ["batch", "height", "width"]
    other = randomised(Amplifies(70))  # the same at 16x16
    assert goes_wrong(made.model, model, (x,), made.axes) is None
    assert goes_wrong(made.model, other, (x,), made.axes) == "at another size its output is another"


def test_an_output_that_is_not_a_number_at_another_size_alone_is_another() -> None:
    class Odd(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.value if x.shape[2] != 8 else 1.0)

    x = torch.rand(2, 3, 8, 8)
    axes = free_sizes(nn.ReLU(), (x,)).axes
    for right, wrong in ((1.0, math.nan), (1.0, math.inf), (math.nan, 1.0), (0.0, 1.0), (math.inf, -math.inf)):
        said = _elsewhere(lambda values, wrong=wrong: [Odd(wrong)(*values)], Odd(right), (x,), axes)
        assert said == "at another size its output is another", (right, wrong)
    for same in (1.0, 0.0, math.nan, math.inf):
        assert _elsewhere(lambda values, same=same: [Odd(same)(*values)], Odd(same), (x,), axes) is None, same


class _Outcome(nn.Module):
    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.conv(x)))


def test_a_size_whose_export_is_wrong_on_the_example_too_is_fixed() -> None:
    """Of "nearest-exact" by 1.7 the exporter makes something else where the size is free, and the right thing else."""
    model = randomised(_Outcome(partial(F.interpolate, scale_factor=1.7, mode="nearest-exact")))
    x = torch.randn(2, 3, 8, 8)
    made = onnx_of(model, x, dynamic=Wanted(batch=True, size=True))
    assert [axis.name for axis in made.axes] == ["batch"]
    assert "on the example its output is another" in " ".join(made.notes)
    assert goes_wrong(made.model, model, (x,), ()) is None


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (nn.AvgPool2d(2, divisor_override=3), "on the example its output is another"),
        (lambda y: y.squeeze(0), "on the example it stops with: "),
    ],
)
def test_what_the_exporter_gets_wrong_is_not_written(last: Any, said: str, tmp_path: Path) -> None:
    model = randomised(_Outcome(last))
    with pytest.raises(ExportError, match=f"is not the model: {said}"):
        bnfold.export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_module_that_counts_its_runs_is_left_as_it_was(tmp_path: Path) -> None:
    class Counts(_Outcome):
        def __init__(self) -> None:
            super().__init__(nn.ReLU())
            self.register_buffer("runs", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                self.runs += 1
            return super().forward(x)

    model = randomised(Counts())
    bnfold.export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 3, 8, 8))
    assert int(model.runs) == 0


@pytest.mark.parametrize(("size", "warned"), [(32, True), (64, True), (None, False)])
def test_a_bound_from_below_is_told_where_the_model_takes_less(size: int | None, warned: bool, tmp_path: Path) -> None:
    """A file computes what the example's branch does; for a network that is too small for its windows it cannot."""

    def last(y: Tensor) -> Tensor:
        return F.avg_pool2d(y, 4) if size is None or y.shape[2] > size - 2 else y

    model, x = randomised(_Outcome(last)), torch.randn(2, 3, 80, 80)
    folded = bnfold.fold(model, x).module
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        bnfold.export_onnx(folded, tmp_path / "model.onnx", x, dynamic=("batch", "size"))
    found = [str(each.message) for each in told if isinstance(each.message, SizeWarning)]
    assert len(found) == warned
    assert not warned or f"The height must be {int(size or 0) + 1} or more." in found[0]
