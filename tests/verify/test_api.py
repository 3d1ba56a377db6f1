"""Verdicts: right folds pass, every kind of difference fails, and what cannot be told is said to be so."""

from __future__ import annotations

import copy
from importlib import import_module

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold.errors import MissingPackageError, NotEquivalentError, TrainingModeError, UsageError
from bnfold.export import to_onnx, to_program
from bnfold.graph.torch_versions import exact_settings
from bnfold.verify import assert_equivalent, verify
from tests.networks import NETWORKS, SharedConv, Vgg, built, normal, seed_network


def folded(name: str) -> tuple[nn.Module, bnfold.Folding, tuple[Tensor, ...]]:
    model, inputs = NETWORKS[name]()
    return model, bnfold.fold(model, inputs), inputs


# --- right folds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_fold_passes(name):
    model, folding, inputs = folded(name)
    report = verify(model, folding.module, inputs, onnx=False, folding=folding)
    assert report.passed, str(report)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_fold_passes_as_onnx_with_any_seed(name, seed):
    model, folding, inputs = folded(name)
    report = verify(model, folding.module, inputs, folding=folding, seed=seed, thorough=True)
    assert report.passed, str(report)


def test_the_export_is_compared_with_optimisations_off_and_on_at_batch_sizes_one_two_and_three():
    model, folding, inputs = folded("seed")
    report = verify(model, folding.module, inputs, folding=folding)
    assert report.passed, str(report)
    assert [c.name for c in report.comparisons] == [
        "float64 algebra",
        "weights against the plan",
        "rounded weights",
        "torch",
        "ONNX Runtime, optimisations off",
        "ONNX Runtime, optimisations on",
    ]
    assert [c.relaxed[:1] for c in report.comparisons] == [(), (), *[("proven",)] * 4]
    assert report.to_dict()["comparisons"][-1]["relaxed"][0] == "proven"
    without = verify(model, folding.module, inputs, onnx=False)
    assert all("proven" not in c.relaxed for c in without.comparisons)
    assert {case.rpartition("batch ")[2] for case in report.cases if "batch" in case} >= {"1", "2", "3"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_judged_by_their_own_noise(dtype):
    model, _ = NETWORKS["resnet18"]()
    model = model.to(dtype)
    x = normal(2, 3, 32, 32).to(dtype)
    right = bnfold.fold(model, x).module
    assert verify(model, right, x, onnx=False).passed
    wrong = copy.deepcopy(right)
    with torch.no_grad():
        wrong.fc.weight.mul_(1 + 30 * torch.finfo(dtype).eps if dtype != torch.float64 else 1 + 1e-9)
    assert verify(model, wrong, x, onnx=False).verdict == "failed"


def test_the_same_seed_gives_the_same_report_and_another_seed_another():
    model, folding, inputs = folded("lenet")
    first, second, other = (
        verify(model, folding.module, inputs, onnx=False, seed=seed).to_dict() for seed in (5, 5, 6)
    )
    assert first == second
    assert first != other


def test_what_torch_export_made_of_the_candidate_is_compared_too():
    model, folding, inputs = folded("seed")
    program = to_program(folding.module, inputs)
    report = verify(model, folding.module, inputs, onnx=False, folding=folding, program=program)
    assert report.passed, str(report)
    last = report.comparisons[-1]
    assert (last.name, last.stage, last.compared_on) == ("torch.export", "program", "batch 1-3")
    assert last.relaxed[0] == "proven"
    program.state_dict["conv1.weight"] = nn.Parameter(program.state_dict["conv1.weight"] * 1.001)
    report = verify(model, folding.module, inputs, onnx=False, folding=folding, program=program)
    assert (report.verdict, report.blame) == ("failed", "program")
    assert report.reason.endswith("The torch module agrees: torch.export is to blame.")


def test_a_program_runs_at_the_sizes_that_it_claims_and_at_no_others():
    model, x = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).eval(), normal(2, 3, 9, 9)
    report = verify(model, model, x, onnx=False, program=to_program(model, x))
    assert report.passed, str(report)
    assert report.comparisons[-1].compared_on == "batch 1-3"
    assert not report.notes
    claims = to_program(model, x, dynamic=("batch", "size"))
    report = verify(model, model, x, onnx=False, program=claims)
    assert report.passed, str(report)
    assert report.comparisons[-1].compared_on.startswith("batch 1-3, 9x9 and ")
    convolution = next(node for node in claims.graph.nodes if "conv2d" in str(node.target))
    with claims.graph.inserting_before(convolution):
        fixed = claims.graph.call_function(torch.ops.aten.view.default, (convolution.args[0], [-1, 3, 9, 9]))
    convolution.update_arg(0, fixed)
    report = verify(model, model, x, onnx=False, program=claims)
    assert (report.verdict, report.blame) == ("failed", "program")


def test_a_program_of_one_batch_is_compared_on_several_cases_of_that():
    model, x = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).eval(), normal(2, 3, 9, 9)
    report = verify(model, model, x, onnx=False, program=to_program(model, x, dynamic=()))
    assert report.passed, str(report)
    assert report.comparisons[-1].compared_on == "batch 2"
    assert len(report.notes) == 2  # and two of its own batch
    assert all("batch 1 in the exported program" in note for note in report.notes)


def test_a_batch_that_a_fold_refuses_is_not_told_as_another_size():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.bn(self.conv(x))
            return y * 2 if y.shape[0] > 1 else y * 3

    model, x = built(Branches), normal(2, 3, 9, 9)
    folding = bnfold.fold(model, x)
    report = verify(model, folding.module, x, onnx=False, folding=folding)
    assert report.passed, str(report)
    assert len(report.notes) == 3
    assert all(note.startswith("Not compared on") and "1 > 1 is False" in note for note in report.notes)


def test_a_program_is_not_run_on_a_batch_that_it_does_not_declare_whatever_else_it_is_given_in_a_list():
    class Sums(nn.Module):
        def forward(self, x, others):
            return (x.reshape(x.shape[0], -1) + others[0].flatten()).relu()

    model, inputs = Sums().eval(), (normal(2, 3, 4), [normal(3, 4)])
    program = to_program(model, inputs, dynamic=())
    report = verify(model, model, inputs, onnx=False, program=program)
    assert report.passed, str(report)
    assert report.comparisons[-1].compared_on == "batch 2"


def test_a_comparison_leaves_the_buffers_of_a_program_as_they_are():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return x * 2

    model, x = Counts().eval(), normal(2, 3)
    program = to_program(model, x)
    assert verify(model, model, x, onnx=False, program=program).passed
    assert program.state_dict["calls"] == 0


def test_a_program_can_be_compared():
    model, folding, inputs = folded("lenet")
    assert verify(model, to_program(folding.module, inputs), inputs, onnx=False).passed
    assert verify(to_program(model, inputs), folding.module, inputs, onnx=False).passed


# --- wrong ones -------------------------------------------------------------------------------------------------------


class Changed(nn.Module):
    """A model whose output somebody changed."""

    def __init__(self, model: nn.Module, change) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, *inputs):
        return self.change(self.model(*inputs))


def with_nan(y: Tensor) -> Tensor:
    return torch.cat([y[:, :-1], torch.full_like(y[:, -1:], float("nan"))], 1)


def with_infinity(y: Tensor) -> Tensor:
    return torch.cat([y[:, :-1], torch.full_like(y[:, -1:], float("-inf"))], 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y[:, :-1], r"shape \(2, 9\) instead of \(2, 10\)"),
        (lambda y: y[:, None], r"shape \(2, 1, 10\)"),
        (lambda y: y.half(), "dtype float16 instead of float32"),
        (lambda y: y.double(), "dtype float64 instead of float32"),
        (lambda y: (y,), r"the output is tuple\(Tensor\) instead of Tensor"),
        (lambda y: {"output": y}, r"the output is dict\('output': Tensor\) instead of Tensor"),
        (lambda y: None, "the output is NoneType instead of Tensor"),
        (with_nan, r"output is NaN at \[0, 9\], where the original is not"),
        (with_infinity, r"output is infinity at \[0, 9\], where the original is not"),
        (lambda y: y.flip(1), "times what rounding makes in the original"),
        (lambda y: y.roll(1, 0), "times what rounding makes in the original"),
        (lambda y: y * (1 + 2e-5), "times what rounding makes in the original"),
        (lambda y: y + 1e-3, "times what rounding makes in the original"),
        (lambda y: y.half().float(), "times what rounding makes in the original"),
        (lambda y: y.detach() * 0, "times what rounding makes in the original"),
    ],
)
def test_a_changed_output_fails(change, words):
    model, inputs = NETWORKS["lenet"]()
    report = verify(model, Changed(model, change).eval(), inputs, onnx=False)
    assert report.verdict == "failed"
    assert not report.passed
    with pytest.raises(NotEquivalentError, match=words):
        assert_equivalent(model, Changed(model, change).eval(), inputs)


def test_a_square_output_that_is_transposed_fails():
    model = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = normal(2, 3, 8, 8)
    assert verify(model, Changed(model, lambda y: y.transpose(2, 3)).eval(), x, onnx=False).verdict == "failed"


class Pools(nn.Module):
    """A conv, something between, and a BatchNorm; folded as if what is between did not matter."""

    def __init__(self, between: nn.Module, *, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, padding_mode=padding_mode)
        self.between, self.bn = between, nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.between(self.conv(x))))


def folded_regardless(model: Pools) -> Pools:
    wrong = copy.deepcopy(model)
    affine = bnfold.affine_of(model.bn)
    with torch.no_grad():
        wrong.conv.weight.copy_(model.conv.weight.double() * affine.scale[:, None, None, None])
        wrong.conv.bias.copy_(model.conv.bias.double() * affine.scale + affine.shift)
    wrong.bn = nn.Identity()
    return wrong.eval()


@pytest.mark.parametrize(
    "between",
    [nn.MaxPool2d(2), nn.AvgPool2d(3, padding=1), nn.ReLU(), nn.Sigmoid(), nn.ZeroPad2d(1), nn.LPPool2d(2, 2)],
    ids=lambda layer: type(layer).__name__,
)
def test_an_illegal_move_fails(between):
    model = built(lambda: Pools(between))
    report = verify(model, folded_regardless(model), normal(2, 3, 9, 9), onnx=False)
    assert report.verdict == "failed"


@pytest.mark.parametrize("between", [nn.Identity(), nn.AvgPool2d(2), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(4)])
def test_the_same_move_where_it_is_legal_passes(between):
    model = built(lambda: Pools(between))
    assert verify(model, folded_regardless(model), normal(2, 3, 9, 9), onnx=False).passed


def test_a_shift_pushed_through_zero_padding_fails():
    model = built(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)))
    affine = bnfold.affine_of(model[0])
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong[1].weight.copy_(model[1].weight.double() * affine.scale[None, :, None, None])
        wrong[1].bias.copy_(model[1].bias + (model[1].weight.double().sum((2, 3)) @ affine.shift))
    wrong[0] = nn.Identity()
    assert verify(model, wrong.eval(), normal(2, 3, 8, 8), onnx=False).verdict == "failed"
    wrong[1].padding = model[1].padding = (0, 0)
    assert verify(model, wrong.eval(), normal(2, 3, 8, 8), onnx=False).passed


def test_the_other_call_of_a_shared_conv_changed_fails():
    model = built(SharedConv)
    affine = bnfold.affine_of(model.bn)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.conv.weight.copy_(model.conv.weight.double() * affine.scale[:, None, None, None])
        wrong.conv.bias.copy_(model.conv.bias.double() * affine.scale + affine.shift)
    wrong.bn = nn.Identity()
    assert verify(model, wrong.eval(), normal(2, 3, 8, 8), onnx=False).verdict == "failed"


def test_a_dropped_hook_fails():
    model, inputs = NETWORKS["lenet"]()
    right = copy.deepcopy(model)
    model.conv2.register_forward_hook(lambda _layer, _inputs, output: output * 1.001)
    assert verify(model, copy.deepcopy(model), inputs, onnx=False).passed
    assert verify(model, right, inputs, onnx=False).verdict == "failed"


class Joined(nn.Module):
    def __init__(self, order: tuple[int, int]) -> None:
        super().__init__()
        self.order = order
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, 3) for _ in range(2))
        self.bn, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(torch.cat([self.convs[i](x) for i in self.order], 1)))


def test_a_permuted_cat_fails():
    model = built(lambda: Joined((0, 1)))
    wrong = copy.deepcopy(model)
    wrong.order = (1, 0)
    assert verify(model, wrong, normal(2, 3, 8, 8), onnx=False).verdict == "failed"


@pytest.mark.parametrize(
    ("name", "value"), [("padding_mode", "reflect"), ("stride", (1, 1)), ("dilation", (1, 1)), ("groups", 1)]
)
def test_another_attribute_of_a_conv_fails(name, value):
    model = built(lambda: nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, dilation=2, padding=2), nn.BatchNorm2d(4)))
    wrong = copy.deepcopy(model)
    if name == "groups":
        model = built(lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)))
        wrong = built(lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    else:
        setattr(wrong[0], name, value)
        wrong[0]._reversed_padding_repeated_twice = [2, 2, 2, 2]
    assert verify(model, wrong, normal(2, 4, 12, 12), onnx=False).verdict == "failed"


@pytest.mark.parametrize("depth", [1, 4, 16, pytest.param(32, marks=pytest.mark.long)])
def test_one_small_mistake_is_caught_at_any_depth(depth):
    def network() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-3].weight, nonlinearity="relu")
        return nn.Sequential(*layers, nn.Conv2d(8, 8, 1))

    model, x = built(network), normal(2, 8, 12, 12)
    right = bnfold.fold(model, x).module
    assert verify(model, right, x, onnx=False).passed
    wrong = copy.deepcopy(model)
    wrong[1].eps *= 1.05
    assert verify(model, wrong, x, onnx=False).verdict == "failed"


# --- what the original answers ----------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("kind", [Noisy, Counting])
def test_a_model_that_answers_otherwise_each_time_cannot_be_verified(kind):
    model = kind().eval()
    state = torch.get_rng_state()
    report = verify(model, copy.deepcopy(model), normal(2, 3), onnx=False)
    assert report.verdict == "unverifiable"
    assert "not deterministic" in report.reason
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(NotEquivalentError, match="not deterministic"):
        assert_equivalent(model, model, normal(2, 3))


@pytest.mark.parametrize(
    "constant", [lambda x: x * 0, torch.ones_like, lambda x: F.relu(-x.square()) + torch.arange(3.0)]
)
def test_outputs_that_do_not_depend_on_the_input_prove_nothing(constant):
    model = Changed(nn.Identity(), constant).eval()
    report = verify(model, copy.deepcopy(model), normal(2, 3), onnx=False)
    assert report.verdict == "unverifiable"
    assert "proves nothing" in report.reason


def test_other_constants_fail():
    model, other = (Changed(nn.Identity(), lambda x, value=value: x * 0 + value).eval() for value in (1.0, 2.0))
    assert verify(model, other, normal(2, 3), onnx=False).verdict == "failed"


class WhereLargest(nn.Module):
    """Two numbers that are equal but for rounding; which is larger is anybody's guess."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        thirds = torch.cat([x[:, :1] / 3 * 7, x[:, :1] * 7 / 3], 1)
        return x * 2, thirds.argmax(1).float() * 5


def test_where_rounding_decides_nothing_is_compared_and_the_rest_is():
    model, x = WhereLargest().eval(), normal(64, 4)
    other = Changed(model, lambda out: (out[0], 5 - out[1])).eval()
    report = verify(model, other, x, onnx=False)
    assert any("own rounding moves output[1]" in note for note in report.notes)
    assert all("output[1]" not in c.name or c.case != "the example inputs" for c in report.comparisons)
    wrong = Changed(model, lambda out: (out[0] * 1.001, out[1])).eval()
    assert verify(model, wrong, x, onnx=False).verdict == "failed"


class DeadBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.dead = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.relu(self.bn(self.dead(x)) - 1e6)


def test_a_batchnorm_that_never_reaches_the_output_is_not_proved():
    model = built(DeadBranch)
    wrong = copy.deepcopy(model)
    wrong.bn.eps = 1.0
    report = verify(model, wrong, normal(2, 3, 8, 8), onnx=False)
    assert report.verdict == "unverifiable"
    assert "bn does not reach the output" in report.reason


def test_with_the_plan_it_is_compared_where_it_stands():
    model, x = built(DeadBranch), normal(2, 3, 8, 8)
    folding = bnfold.fold(model, x)
    assert folding.plan.summary["fold"] == 1
    report = verify(model, folding.module, x, onnx=False, folding=folding)
    assert report.passed, str(report)
    assert any("bn does not reach the output" in note for note in report.notes)


class Unread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.bn(y)
        return y


def test_a_batchnorm_that_nobody_reads_does_not_matter():
    model = built(Unread)
    assert verify(model, copy.deepcopy(model), normal(2, 3, 8, 8), onnx=False).passed


class Mixed(nn.Module):
    """Outputs that are not all tensors."""

    def __init__(self, word: object = "word", number: float = float("nan")) -> None:
        super().__init__()
        self.linear, self.word, self.number = nn.Linear(3, 4), word, number

    def forward(self, x: Tensor):
        y = self.linear(x)
        return {"y": y, "word": self.word, "n": (None, self.number, x.shape[0]), "arg": y.argmax(1), "any": y > 0}


def mixed(**changes: object) -> Mixed:
    torch.manual_seed(0)
    return Mixed(**changes).eval()


def test_outputs_that_are_no_tensors_are_compared_by_value():
    model = mixed()
    assert verify(model, mixed(), normal(2, 3), onnx=False).passed
    report = verify(model, mixed(word="other"), normal(2, 3), onnx=False)
    assert report.verdict == "failed"
    assert "output['word'] is 'other' instead of 'word'" in report.reason
    assert verify(model, mixed(number=1.0), normal(2, 3), onnx=False).verdict == "failed"


def test_integers_and_booleans_are_compared():
    model = mixed()
    wrong = Changed(model, lambda out: {**out, "arg": (out["arg"] + 1) % 4}).eval()
    report = verify(model, wrong, normal(8, 3), onnx=False)
    assert report.verdict == "failed"
    assert "elements differ" in report.reason
    wrong = Changed(model, lambda out: {**out, "any": ~out["any"]}).eval()
    assert verify(model, wrong, normal(8, 3), onnx=False).verdict == "failed"


class LogOf(nn.Module):
    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.offset).log()


def test_nan_in_the_original_must_stand_in_the_same_places():
    x = torch.tensor([[-1.0, 0.0, 2.0, 3.0], [1.0, -3.0, 0.5, 0.0]])
    report = verify(LogOf().eval(), LogOf().eval(), x, onnx=False)
    assert report.passed, str(report)
    assert any("NaN or infinity" in note for note in report.notes)
    fewer = Changed(LogOf(), lambda y: y.nan_to_num(nan=0.0, neginf=float("-inf"))).eval()
    assert "output is not NaN at [0, 0]" in verify(LogOf().eval(), fewer, x, onnx=False).reason
    other = Changed(LogOf(), lambda y: torch.where(y == float("-inf"), float("inf"), y)).eval()
    assert "infinity of the other sign" in verify(LogOf().eval(), other, x, onnx=False).reason


class Empty(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :0], x * 2


def test_an_empty_output_is_compared_by_shape():
    assert verify(Empty().eval(), Empty().eval(), normal(2, 3), onnx=False).passed
    wrong = Changed(Empty(), lambda out: (out[0].transpose(0, 1), out[1])).eval()
    assert "shape" in verify(Empty().eval(), wrong, normal(2, 3), onnx=False).reason


class WritesItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).relu_() + x


def test_a_model_that_writes_into_its_input_is_compared_on_copies():
    x = normal(2, 3)
    before = x.clone()
    assert verify(WritesItsInput().eval(), WritesItsInput().eval(), x, onnx=False).passed
    assert torch.equal(x, before)


class FixedSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(2, 64))


def test_a_model_that_takes_one_batch_size_is_compared_there():
    report = verify(FixedSize().eval(), FixedSize().eval(), normal(2, 1, 8, 8), onnx=False)
    assert report.verdict == "failed"  # two sets of weights
    model = FixedSize().eval()
    report = verify(model, copy.deepcopy(model), normal(2, 1, 8, 8), onnx=False)
    assert report.passed, str(report)
    assert any("does not run on" in note for note in report.notes)


def test_the_users_own_inputs_are_compared_too():
    model = Changed(nn.Identity(), lambda y: y * 2).eval()
    wrong = Changed(nn.Identity(), lambda y: torch.where(y > 1e6, y, y * 2)).eval()
    assert verify(model, wrong, normal(2, 3), onnx=False).passed
    report = verify(model, wrong, normal(2, 3), onnx=False, inputs=[torch.full((1, 3), 2e6)])
    assert report.verdict == "failed"
    assert "given inputs 1" in report.reason


# --- nothing is changed -----------------------------------------------------------------------------------------------


def test_models_inputs_and_settings_are_left_as_they_were():
    model, folding, inputs = folded("resnet18")
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model, folding.module)]
    kept = inputs[0].clone()
    torch.manual_seed(3)
    rng, threads = torch.get_rng_state(), torch.get_num_threads()
    precisions = [getattr(owner, name) for owner, name, _ in exact_settings()]
    verify(model, folding.module, inputs, onnx=False, folding=folding)
    for m, state in zip((model, folding.module), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
        assert all(not part._forward_hooks for part in m.modules())
        assert all(p.grad is None for p in m.parameters())
    assert torch.equal(inputs[0], kept)
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert [getattr(owner, name) for owner, name, _ in exact_settings()] == precisions


def test_settings_are_restored_after_an_error():
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no such luck")

    with pytest.raises(UsageError, match="no such luck"):
        verify(Raises().eval(), Raises().eval(), normal(2, 3), onnx=False)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_progress_goes_from_nothing_to_all():
    model, folding, inputs = folded("lenet")
    told: list[tuple[str, float]] = []
    verify(model, folding.module, inputs, onnx=False, progress=lambda sentence, done: told.append((sentence, done)))
    fractions = [done for _, done in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


# --- ONNX -------------------------------------------------------------------------------------------------------------


def broken(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose first large weight is a little off."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    tensor = next(t for t in copied.graph.initializer if len(t.dims) > 1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.0001, tensor.name))
    return copied


def test_a_given_export_is_the_one_compared(tmp_path):
    model, folding, inputs = folded("lenet")
    proto = to_onnx(folding.module, inputs)
    assert verify(model, folding.module, inputs, onnx=proto).passed
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken(proto).SerializeToString())
    report = verify(model, folding.module, inputs, onnx=path)
    assert report.verdict == "failed"
    assert report.blame == "export"
    assert "the exporter is to blame" in report.reason
    assert [c.passed for c in report.comparisons] == [True, True, False, False, True]
    assert report.comparisons[-1].name == "the original's own export, optimisations off"


def test_a_file_that_fails_is_set_beside_the_original_s_own_export(monkeypatch):
    model, _, inputs = folded("lenet")
    wrong = broken(to_onnx(model, inputs))
    report = verify(model, wrong, inputs)
    assert (report.verdict, report.blame) == ("failed", "export")
    assert report.reason.endswith("own export, made here, agrees: what differs is in the candidate.")
    assert [c.passed for c in report.comparisons] == [False, False, True]

    blame = import_module("bnfold.verify.blame")
    monkeypatch.setattr(blame.OwnExport, "model", wrong)  # an exporter that is as wrong
    report = verify(model, wrong, inputs)
    assert report.verdict == "failed"
    assert "folded by nobody, is as far off" in report.reason


def test_an_onnx_model_can_stand_on_either_side(tmp_path):
    model, folding, inputs = folded("lenet")
    proto = to_onnx(folding.module, inputs)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert verify(model, path, inputs).passed
    assert verify(str(path), model, inputs).passed
    assert verify(model, broken(proto), inputs).verdict == "failed"
    assert verify(broken(proto), model, inputs).verdict == "failed"
    assert verify(proto, proto, inputs).passed
    assert verify(proto, broken(proto), inputs).verdict == "failed"


def test_several_outputs_and_inputs_are_matched_with_the_export():
    for name in ("several-outputs", "two-inputs"):
        model, folding, inputs = folded(name)
        report = verify(model, folding.module, inputs, folding=folding)
        assert report.passed, str(report)


def test_without_onnxruntime_the_error_says_what_still_works(monkeypatch):
    from bnfold.verify import runtime

    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    model, folding, inputs = folded("lenet")
    with pytest.raises(MissingPackageError, match=r"onnx=False"):
        verify(model, folding.module, inputs)
    assert verify(model, folding.module, inputs, onnx=False).passed


# --- invalid requests -------------------------------------------------------------------------------------------------


def test_a_model_in_training_mode_is_refused_by_name():
    model, inputs = NETWORKS["lenet"]()
    other = copy.deepcopy(model)
    other.bn2.train()
    with pytest.raises(
        TrainingModeError, match=r"candidate model is in training mode, .* \(bn2: normalises by its batch\)"
    ):
        verify(model, other, inputs, onnx=False)


def test_what_is_no_model_is_refused():
    with pytest.raises(UsageError, match="candidate is a dict"):
        verify(seed_network(), {}, normal(1, 1, 28, 28), onnx=False)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="does not run on the example inputs"):
        verify(seed_network(), seed_network(), normal(1, 3, 28, 28), onnx=False)
    with pytest.raises(UsageError, match="NaN or infinity"):
        verify(seed_network(), seed_network(), normal(1, 1, 28, 28) / 0, onnx=False)


def test_a_candidate_that_raises_fails():
    model = built(Vgg)
    wrong = copy.deepcopy(model)
    wrong.classifier[2] = nn.Linear(7, 10)
    report = verify(model, wrong.eval(), normal(2, 3, 32, 32), onnx=False)
    assert report.verdict == "failed"
    assert "does not run on the example inputs" in report.reason


# --- outputs of another dtype than the weights ------------------------------------------------------------------------


class Wide(nn.Module):
    """What comes after a float32 network may be computed in float64; it is no more precise for that."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)).double() * 2


class Spectrum(Wide):
    def forward(self, x):
        return torch.fft.rfft(self.norm(self.conv(x)))


@pytest.mark.parametrize("kind", [Wide, Spectrum])
def test_outputs_of_another_dtype_are_judged_by_the_precision_of_the_weights(kind):
    model = built(kind)
    inputs = normal(1, 3, 8, 8)
    folding = bnfold.fold(model, inputs)
    proto = to_onnx(folding.module, inputs)
    report = verify(model, folding.module, inputs, onnx=proto)
    assert report.passed, report.reason
    assert len(report.comparisons) >= 4
    assert not any("is not compared there" in note for note in report.notes)
    with torch.no_grad():
        folding.module.conv.weight[2, 1, 0, 0] *= 1.001
    assert verify(model, folding.module, inputs, onnx=proto).verdict == "failed"
    assert verify(model, model, inputs, onnx=broken(proto)).verdict == "failed"


def test_a_float64_network_is_held_to_float64():
    model = built(Wide).double()
    inputs = normal(1, 3, 8, 8).double()
    folding = bnfold.fold(model, inputs)
    assert verify(model, folding.module, inputs, onnx=False).passed
    with torch.no_grad():
        folding.module.conv.weight[2, 1, 0, 0] *= 1 + 1e-7
    assert verify(model, folding.module, inputs, onnx=False).verdict == "failed"


def test_one_buffer_of_less_precision_excuses_nothing():
    model = built(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    model.register_buffer("unread", torch.zeros(4).half())
    wrong = copy.deepcopy(model)
    wrong[1].eps = 1e-3
    assert verify(model, wrong, normal(1, 3, 8, 8), onnx=False).verdict == "failed"


class Coarse(Wide):
    def __init__(self, dtype: torch.dtype = torch.float8_e4m3fn) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float().to(self.dtype)


def test_float8_outputs_are_too_coarse_to_prove_anything():
    model = built(Coarse)
    inputs = (normal(2, 3, 8, 8),)
    folding = bnfold.fold(model)
    report = verify(model, folding.module, inputs)
    assert report.verdict == "unverifiable"
    assert "float8" in report.reason
    other = Coarse(torch.float8_e5m2).eval()
    other.load_state_dict(model.state_dict())
    report = verify(model, other, inputs, onnx=False)
    assert report.verdict == "failed"
    assert "dtype float8_e5m2 instead of float8_e4m3fn" in report.reason


def test_an_original_that_answers_no_number_proves_nothing():
    model, x = seed_network(), normal(2, 1, 28, 28)
    with torch.no_grad():
        model.fc1.weight.fill_(float("nan"))
    report = verify(model, copy.deepcopy(model), x, onnx=False)
    assert report.verdict == "unverifiable"
    assert "nothing but NaN or infinity on the example inputs" in report.reason
