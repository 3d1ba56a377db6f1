"""A program in, a program out: the same function, the same free dimensions, the same names."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils import _pytree as pytree

import bnfold
from bnfold.errors import UsageError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.BatchNorm2d(5))

    def forward(self, pair: list[Tensor]) -> dict[str, Tensor]:
        x, y = pair
        return {"sum": self.body(self.bn(self.pool(self.conv(x)))) + y}


def used(net: nn.Module) -> nn.Module:
    """Give the BatchNorms of a network statistics as if it had been trained."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return net.eval()


def network() -> Net:
    torch.manual_seed(0)
    net = Net()
    used(net)
    net.body[3].weight.data[0] = -1.0
    return net


def pair(batch: int, height: int) -> list[Tensor]:
    torch.manual_seed(batch)
    return [torch.randn(batch, 3, height, 8), torch.randn(batch, 1, 1, 1)]


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    batch, half = Dim("batch", max=64), Dim("half", min=2, max=32)
    shapes = ([{0: batch, 2: 2 * half}, {0: batch}],)
    return export(network(), (pair(2, 8),), dynamic_shapes=shapes)


def test_a_folded_program_is_the_same_function_with_the_same_dimensions_free(program: ExportedProgram) -> None:
    before = copy.deepcopy(program.state_dict)
    folded = bnfold.fold_program(program)
    assert [(d.batchnorm, d.action) for d in folded.plan] == [("bn", "fold"), ("body.1", "fold"), ("body.3", "affine")]
    assert str(folded.program.graph).count("aten.batch_norm") == 1, "the explicit affine, which torch computes best so"
    for batch, height in ((2, 8), (1, 4), (5, 12)):
        images = pair(batch, height)
        expected, found = program.module()(images), folded.program.module()(images)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for images in (pair(65, 8), pair(2, 66)):  # beyond the ranges, for either
        for one in (program, folded.program):
            with pytest.raises((AssertionError, RuntimeError)):  # the latter in torch 2.6
                one.module()(images)
    assert _ranges(folded.program) == _ranges(program)
    assert all(torch.equal(program.state_dict[name], value) for name, value in before.items())


def _ranges(program: ExportedProgram) -> list[str]:
    return sorted(map(str, program.range_constraints.values()))


def test_weights_keep_their_names(program: ExportedProgram) -> None:
    names = set(bnfold.fold_program(program).program.state_dict)
    assert {"conv.weight", "conv.bias", "body.0.weight", "body.0.bias"} <= names
    assert not any(name.endswith("running_var") for name in names if not name.startswith("body.3"))


def test_what_is_kept_stays(program: ExportedProgram) -> None:
    folded = bnfold.fold_program(program, keep=["bn"])
    assert (folded.plan[0].action, folded.plan[0].reason) == ("keep", "kept-by-request")
    assert "batch_norm" in str(folded.program.graph)


class Sizes(nn.Module):
    """Of which torch writes ``aten.sym_size.int`` into the program."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.bn(self.conv(x)).view(x.shape[0], -1)
        return torch.cat([rows, torch.ones(x.shape[0], x.shape[2]) / x.shape[2]], 1)


def test_sizes_that_the_code_reads_stay_free() -> None:
    torch.manual_seed(0)
    net = used(Sizes())
    program = export(net, (torch.randn(2, 3, 6, 4),), dynamic_shapes=({0: Dim("n", max=64), 2: Dim("h", max=64)},))
    assert "sym_size" in str(program.graph)
    folded = bnfold.fold_program(program)
    assert folded.plan.summary["fold"] == 1
    for shape in ((2, 3, 6, 4), (5, 3, 9, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(folded.program.module()(x), net(x), rtol=1e-5, atol=1e-5)


def half_of_it(y: Tensor) -> Tensor:
    return y[:, :, : y.shape[2] // 2].sum((2, 3))  # which torch takes for less than the whole


def its_root(y: Tensor) -> Tensor:
    return y.sum((2, 3)) / y.shape[2] ** 0.5


def at_least_eleven(y: Tensor) -> Tensor:
    return y.sum((2, 3)) / torch.sym_max(y.shape[2], 11)


def half_more_of_it(y: Tensor) -> Tensor:
    return y.sum((2, 3)) * int(y.shape[2] * 1.5)  # which torch takes for 9, and checks


def its_root_as_a_number(y: Tensor) -> Tensor:
    return y.sum((2, 3)) / math.sqrt(y.shape[2])  # which makes the height one, 6


class Decides(nn.Module):
    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)))


@pytest.mark.filterwarnings("ignore:The delegation of int")  # inside torch 2.8
@pytest.mark.parametrize("head", [half_of_it, its_root, at_least_eleven, half_more_of_it, its_root_as_a_number])
def test_a_folded_program_takes_the_sizes_that_the_program_takes(head: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    program = export(
        used(Decides(head)), (torch.randn(2, 3, 6, 4),), dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO},), strict=False
    )
    folded = bnfold.fold_program(program).program
    answers = []
    for shape in ((2, 3, 6, 4), (5, 3, 6, 4), (5, 3, 9, 4), (2, 3, 16, 4)):
        x = torch.randn(shape)
        try:
            expected = program.module()(x)
        except (AssertionError, RuntimeError):
            with pytest.raises((AssertionError, RuntimeError)):
                folded.module()(x)
        else:
            answers.append(shape)
            torch.testing.assert_close(folded.module()(x), expected, rtol=1e-5, atol=1e-5)
    assert {(2, 3, 6, 4), (5, 3, 6, 4)} <= {*answers}
    assert _ranges(folded) == _ranges(program)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor, *, scale: Tensor) -> Any:
        return self.body(x) * scale


def test_keyword_arguments_and_missing_inputs_are_refused_in_a_sentence(program: ExportedProgram) -> None:
    named = export(Named().eval(), (torch.zeros(2, 3, 4, 4),), {"scale": torch.ones(1)})
    with pytest.raises(UsageError, match=r"takes keyword arguments \(scale\)"):
        bnfold.fold_program(named)
    bare = copy.copy(program)
    bare._example_inputs = None
    with pytest.raises(UsageError, match="holds no example inputs"):
        bnfold.fold_program(bare)


def test_a_program_of_a_model_in_training_mode_keeps_its_batchnorms() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).train()
    folded = bnfold.fold_program(export(body, (torch.randn(4, 3, 5, 5),)))
    assert [d.action for d in folded.plan] == ["keep"]


class Nested(nn.Module):
    """Gives a dict of dicts, lists and tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.bn(self.conv(x))
        return {"one": y, "list": [x, {"two": y}], "tuple": (y, [x])}


@pytest.mark.parametrize("way", ["fold_program", "export of the folded module"])
def test_a_program_gives_plain_dicts_and_lists_as_the_original_does(way: str) -> None:
    """The code of torch.fx holds immutable ones, which whoever writes into an output would run into."""
    model, x = used(Nested()), torch.randn(2, 3, 8, 8)
    original = export(model, (x,))
    if way == "fold_program":
        program = bnfold.fold_program(original).program
    else:
        program = export(bnfold.fold(model, x).module, (x,))
    assert program.call_spec == original.call_spec
    given = program.module()(x)
    assert type(given) is dict
    assert type(given["list"]) is list
    given["list"].append(given["list"][1].pop("two"))
    given["tuple"][1].clear()
    assert torch.allclose(given["list"][2], model(x)["one"], atol=1e-5)


def test_an_interpreter_of_a_folded_module_gives_what_the_module_gives() -> None:
    model, x = used(Nested()), torch.randn(2, 3, 8, 8)
    module = bnfold.fold(model, x).module
    given = torch.fx.Interpreter(module).run(x)  # type: ignore[arg-type]
    assert pytree.tree_structure(given) == pytree.tree_structure(module(x)) == pytree.tree_structure(model(x))
