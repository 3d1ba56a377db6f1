"""Weights without a model find their places in it, all of them, or none is loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnfold.errors import RefusedFileError
from bnfold.files.load import LoadedModel, load_model
from tests.files.nets import assert_same, make_net

ROOT = Path(__file__).resolve().parents[2]


def fitted(state: Any, code: Path, **options: Any) -> LoadedModel:
    path = code.with_name("weights.pt")
    torch.save(state, path)
    return load_model(str(path), model=f"{code}:Net", **options)


@pytest.fixture
def original() -> nn.Module:
    return make_net("nets_for_load")[1]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.net."])
def test_a_state_dict_fits_whatever_wrapper_left_its_prefix(prefix: str, code: Path, original: nn.Module) -> None:
    loaded = fitted({f"{prefix}{name}": value for name, value in original.state_dict().items()}, code)
    assert loaded.kind == "state_dict"
    assert loaded.notes == (
        () if not prefix else (f"The prefix `{prefix}` was removed from the names of the weights.",)
    )
    assert_same(loaded.model, original)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "ema", "weights_of_the_best"])
def test_a_checkpoint_gives_the_weights_it_holds(key: str, code: Path, original: nn.Module) -> None:
    content = {"epoch": 3, key: original.state_dict(), "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1)}
    loaded = fitted(content, code)
    assert loaded.kind == "checkpoint"
    assert loaded.notes == (f"The weights are those under `{key}`.",)
    assert_same(loaded.model, original)


def test_of_several_sets_of_weights_the_first_is_taken_and_key_picks_another(code: Path, original: nn.Module) -> None:
    other = {name: torch.zeros_like(value) for name, value in original.state_dict().items()}
    content = {"ema": original.state_dict(), "model": other, "deep": {"er": original.state_dict()}}
    loaded = fitted(content, code)
    assert loaded.notes == ("The weights are those under `model`; it also holds `ema`, which --key picks.",)
    assert not torch.equal(loaded.model.scale, original.scale)  # type: ignore[arg-type]
    assert_same(fitted(content, code, key="ema").model, original)
    assert_same(fitted(content, code, key="deep.er").model, original)


def test_a_checkpoint_with_a_whole_module_needs_no_model(
    tmp_path: Path, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, net = make_net("__main__")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "__main__", module)
        torch.save({"epoch": 1, "model": net}, tmp_path / "model.pt")
    loaded = load_model(str(tmp_path / "model.pt"), code=[code])
    assert loaded.kind == "checkpoint"
    assert_same(loaded.model, net)


def test_a_module_inside_a_checkpoint_is_checked_like_any_other(tmp_path: Path) -> None:
    layer = nn.ReLU()
    layer.__dict__["forward"] = nn.Identity()
    torch.save({"model": layer, "epoch": 1}, tmp_path / "model.pt")
    with pytest.raises(RefusedFileError, match="`forward`"):
        load_model(str(tmp_path / "model.pt"))


def test_an_averaged_model_fits(code: Path, original: nn.Module) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(original)
    assert_same(fitted(averaged.state_dict(), code).model, original)


def test_weights_that_lose_digits_are_mentioned(code: Path, original: nn.Module) -> None:
    state = {
        name: value.double() if value.is_floating_point() else value for name, value in original.state_dict().items()
    }
    loaded = fitted(state, code)
    assert loaded.notes == ("Weights were rounded to the model's number format: float64 to float32.",)
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in original.state_dict().items()
    }
    assert fitted(state, code).notes == ()


def test_weights_without_batch_counters_fit(code: Path, original: nn.Module) -> None:
    state = {name: value for name, value in original.state_dict().items() if "num_batches" not in name}
    assert_same(fitted(state, code).model, original)


def test_a_misfit_never_loads_half(code: Path, original: nn.Module) -> None:
    state = dict(original.state_dict())
    state["blocks.0.conv.weigth"] = state.pop("blocks.0.conv.weight")
    state["blocks.1.bn.weight"] = torch.ones(3)
    with pytest.raises(RefusedFileError) as caught:
        fitted(state, code)
    for words in ("1 of another shape", "1 missing (`blocks.0.conv.weight`)", "1 unexpected (`blocks.0.conv.weigth`)"):
        assert words in str(caught.value)


@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_safetensors_file_fits(with_metadata: bool, tmp_path: Path, code: Path, original: nn.Module) -> None:
    import safetensors.torch

    state = {name: value.contiguous() for name, value in original.state_dict().items()}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path, metadata={"format": "pt"} if with_metadata else None)
    loaded = load_model(str(path), model=f"{code}:Net")
    assert (loaded.kind, loaded.name, loaded.notes) == ("safetensors", "model", ())
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


def test_a_safetensors_file_whose_numbers_lie_between_boundaries_is_read(tmp_path: Path) -> None:
    from bnfold.files.safetensors_reader import read_safetensors
    from tests.files.corpus_weights import raw

    header = '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}'
    header += ',"c":{"dtype":"F64","shape":[0,3],"data_offsets":[9,9]}}'
    numbers = torch.tensor([1.5, -2.0])
    (tmp_path / "a").write_bytes(raw(header.encode(), b"\x07" + numbers.numpy().tobytes()))
    with (tmp_path / "a").open("rb") as file:
        found = read_safetensors(file)
    assert found["a"].tolist() == [7]
    assert torch.equal(found["b"], numbers)
    assert found["c"].shape == (0, 3)
