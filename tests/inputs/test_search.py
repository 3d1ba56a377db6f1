"""The input shape is found where the model lets it be, and refused with a sentence where it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnfold.errors import UsageError
from bnfold.inputs.search import find_inputs, inputs_of_shapes, shapes_in_words
from tests.networks import NETWORKS, built, seed_network, small_resnet18


def found_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in find_inputs(model).inputs]


class Flattened(nn.Module):
    """A conv net whose Linear fits one size, with any view before it."""

    def __init__(self, channels: int, size: int, *, pools: int, keeps_batch: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(pools))
        self.features = channels * (size >> pools) ** 2
        self.fc = nn.Linear(self.features, 5)
        self.keeps_batch = keeps_batch

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.max_pool2d(conv(x), 2)
        return self.fc(x.flatten(1) if self.keeps_batch else x.view(-1, self.features))


class Positions(nn.Module):
    """Patches and an embedding of positions: only one size has as many patches."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, stride=8)
        self.positions = nn.Parameter(torch.zeros(1, (size // 8) ** 2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (self.patches(x).flatten(2).transpose(1, 2) + self.positions).mean(1)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("perceptron", "conv1d", "conv3d")])
def test_a_shape_is_found_on_which_the_network_runs_and_keeps_its_batch(name: str) -> None:
    model, example = NETWORKS[name]()
    found = find_inputs(model).inputs
    assert [value.shape[1] for value in found] == [value.shape[1] for value in example]
    assert [value.ndim for value in found] == [value.ndim for value in example]
    output = model(*found)
    for value in output.values() if isinstance(output, dict) else [output]:
        assert value.shape[0] == 2


def test_the_seed_network_is_given_28x28_though_224x224_runs() -> None:
    model = seed_network()
    assert model(torch.randn(1, 1, 224, 224)).shape == (64, 10)
    assert found_shapes(model) == [(2, 1, 28, 28)]


@pytest.mark.parametrize("keeps_batch", [True, False])
@pytest.mark.parametrize(
    ("channels", "size", "pools"), [(1, 28, 2), (3, 32, 3), (4, 40, 2), (3, 72, 3), (2, 52, 2), (5, 176, 4)]
)
def test_a_linear_that_fits_one_size_tells_that_size(channels: int, size: int, pools: int, keeps_batch: bool) -> None:
    model = Flattened(channels, size, pools=pools, keeps_batch=keeps_batch).eval()
    (shape,) = found_shapes(model)
    assert shape[:2] == (2, channels)
    assert shape[2] >> pools == size >> pools
    assert model(torch.randn(3, *shape[1:])).shape == (3, 5)


def test_an_uncommon_size_is_found_by_search_and_not_by_luck() -> None:
    model = Flattened(3, 424, pools=3, keeps_batch=False).eval()
    assert found_shapes(model) == [(2, 3, 424, 424)]


def test_an_embedding_of_positions_tells_the_size() -> None:
    assert found_shapes(Positions(136).eval()) == [(2, 3, 136, 136)]


def test_an_adaptive_network_gets_224() -> None:
    assert found_shapes(small_resnet18().eval()) == [(2, 3, 224, 224)]


def test_a_network_of_sounds_gets_a_length_and_one_of_volumes_three_sizes() -> None:
    assert found_shapes(NETWORKS["conv1d"]()[0]) == [(2, 1, 256)]
    assert found_shapes(NETWORKS["conv3d"]()[0]) == [(2, 2, 32, 32, 32)]


SOUNDS: dict[str, tuple[int, Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "frames of features": (80, lambda x: x.transpose(1, 2), (2, 256, 80)),
    "a wave without channels": (1, lambda x: x.unsqueeze(1), (2, 256)),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_network_of_sounds_that_arranges_them_itself_gets_what_it_takes(name: str) -> None:
    channels, arrange, shape = SOUNDS[name]

    class OfSound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv1d(channels, 4, 5), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(arrange(x)))

    assert found_shapes(OfSound().eval()) == [shape]


def test_a_size_that_the_code_insists_on_is_found() -> None:
    class Patches(nn.Module):
        """Takes gray patches of 32x32 only, and looks before its first layer does: kornia's HardNet."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != 4 or x.shape[1:] != (1, 32, 32):
                raise ValueError(f"expected Bx1x32x32, got {x.shape}")
            return self.bn(self.conv(x))

    assert found_shapes(Patches().eval()) == [(2, 1, 32, 32)]


def test_a_linear_first_network_gets_vectors() -> None:
    assert found_shapes(NETWORKS["perceptron"]()[0]) == [(2, 20)]


def test_a_linear_first_network_that_flattens_images_gets_what_fits() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.BatchNorm1d(4)).eval()
    (value,) = find_inputs(model).inputs
    assert value[0].numel() == 784
    assert model(value).shape == (2, 4)


def test_a_batchnorm_first_network_gets_its_channels() -> None:
    model = nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3)).eval()
    assert found_shapes(model) == [(2, 5, 224, 224)]


def test_an_embedding_first_network_gets_indices_that_exist() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv = nn.Embedding(11, 6), nn.Conv1d(6, 4, 3)

        def forward(self, words: Tensor) -> Tensor:
            return self.conv(self.table(words).transpose(1, 2))

    (words,) = find_inputs(built(Words)).inputs
    assert words.dtype == torch.int64
    assert int(words.max()) < 11


def test_channels_multiplied_on_the_way_to_the_first_layer_are_divided_out() -> None:
    model = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 8, 3)).eval()
    assert found_shapes(model) == [(2, 1, 224, 224)]


def test_groups_are_counted_in_the_channels() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)).eval()
    assert found_shapes(model) == [(2, 8, 224, 224)]


def test_several_inputs_get_a_shape_each() -> None:
    assert found_shapes(NETWORKS["two-inputs"]()[0]) == [(2, 3, 224, 224), (2, 1, 224, 224)]


def test_the_size_that_a_model_carries_in_its_configuration_is_used() -> None:
    model = small_resnet18().eval()
    model.pretrained_cfg = {"input_size": (3, 96, 96)}
    found = find_inputs(model)
    assert tuple(found.inputs[0].shape) == (2, 3, 96, 96)
    assert "pretrained_cfg" in found.how


def test_a_wrong_configuration_is_not_believed() -> None:
    model = seed_network()
    model.default_cfg = {"input_size": (3, 224, 224)}
    assert found_shapes(model) == [(2, 1, 28, 28)]


def test_a_way_that_depends_on_values_is_tried_on_real_ones() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.mean().item() < 100 else x

    assert found_shapes(Gated().eval()) == [(2, 3, 224, 224)]


def test_the_model_is_not_changed_by_the_search() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("calls", torch.zeros(1))
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            return self.conv(x)

    model = Remembering().eval()
    before = copy.deepcopy(model.state_dict())
    find_inputs(model)
    assert model.last is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.conv._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_inputs_have_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    assert find_inputs(seed_network().to(dtype)).inputs[0].dtype == dtype


def test_the_same_seed_gives_the_same_inputs() -> None:
    first, again, other = (find_inputs(seed_network(), seed=seed).inputs[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_that_never_keeps_its_batch_is_refused_with_the_option_that_helps() -> None:
    class OneRow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).sum(0)

    with pytest.raises(UsageError, match=r"No input shape was found .* OneRow .*--input-shape"):
        find_inputs(OneRow().eval())


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise LookupError("no such weather")


def test_a_model_whose_runs_all_fail_says_what_they_failed_of() -> None:
    with pytest.raises(UsageError, match="no such weather"):
        find_inputs(Broken().eval())


def test_a_model_whose_runs_all_fail_says_what_the_one_that_came_furthest_failed_of() -> None:
    class Deep(Broken):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if y.shape[-1] == 222:  # neither the first size that is tried nor the last
                torch.relu(y)
                raise LookupError("too deep")
            return super().forward(y)

    with pytest.raises(UsageError, match=r"the one that came furthest stopped with LookupError: too deep\)"):
        find_inputs(Deep().eval())


def test_a_model_without_inputs_is_refused() -> None:
    class Constant(nn.Module):
        def forward(self) -> Tensor:
            return torch.zeros(1)

    with pytest.raises(UsageError, match="takes no input"):
        find_inputs(Constant().eval())


def test_the_search_copies_nothing_so_that_a_model_that_cannot_be_copied_is_searched_too() -> None:
    class Stubborn(nn.Conv2d):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise RuntimeError("never")

    assert found_shapes(Stubborn(3, 4, 3).eval()) == [(2, 3, 224, 224)]


def test_given_shapes_are_taken_in_order() -> None:
    model, _ = NETWORKS["two-inputs"]()
    found = inputs_of_shapes(model, [(2, 3, 8, 8), (2, 1, 8, 8)])
    assert shapes_in_words(found.inputs) == "2x3x8x8, 2x1x8x8"
    assert model(*found.inputs).shape == (2, 4, 8, 8)


def test_too_few_given_shapes_are_refused_with_the_names_of_the_inputs() -> None:
    model, _ = NETWORKS["two-inputs"]()
    with pytest.raises(UsageError, match=r"takes 2 inputs \(colour, depth\), and 1 --input-shape was given"):
        inputs_of_shapes(model, [(2, 3, 8, 8)])


class Words(nn.Module):
    """Indices in, not images."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(10, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.table(x))


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 6, 3), Words, nn.ReLU], ids=["image", "indices", "no weights"])
def test_a_default_device_of_the_caller_changes_nothing_of_the_inputs(make: Callable[[], nn.Module]) -> None:
    model = make()
    found = find_inputs(model).inputs
    with torch.device("meta"):
        again = find_inputs(model).inputs
        told = inputs_of_shapes(model, [(2, 3, 8, 8)]).inputs
    assert all(map(torch.equal, found, again))
    assert torch.equal(told[0], inputs_of_shapes(model, [(2, 3, 8, 8)]).inputs[0])
    assert {x.device.type for x in (*again, *told)} == {"cpu"}
