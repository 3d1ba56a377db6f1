"""Loading pickled modules, with and without trust; torch is left as it was found."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from bnfold.errors import RefusedFileError
from bnfold.files.load import load_model, resolve_spec
from tests.files.forge import saved
from tests.files.nets import NET, assert_same, code_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("where", ["__main__", "nets_for_load", "their.package.nets", "nets_elsewhere"])
def test_a_pickled_module_gets_its_classes_from_the_code_file(
    where: str, code: Path, save_from: Callable[[str], tuple[Path, nn.Module]]
) -> None:
    path, original = save_from(where)
    loaded = load_model(str(path), code=[code])
    assert (loaded.kind, loaded.name, loaded.notes) == ("pickled module", "model", ())
    assert loaded.model.training, "the mode is left to the caller"
    assert code_of(loaded.model) == code
    assert_same(loaded.model, original)
    assert "halves" not in loaded.model.state_dict()
    assert torch.equal(loaded.model.get_buffer("halves"), torch.ones(2, dtype=torch.bfloat16))


def test_a_script_that_saves_itself_can_be_its_own_code_file(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(NET + "\nif __name__ == '__main__':\n    torch.save(Net().eval(), 'model.pt')\n")
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True)
    loaded = load_model(str(tmp_path / "model.pt"), code=[script])
    assert type(loaded.model).__name__ == "Net"
    assert not loaded.model.training
    assert not list(tmp_path.glob("__pycache__")), "nothing is written beside the user's file"


def test_the_files_code_may_come_by_way_of_model(
    code: Path, save_from: Callable[[str], tuple[Path, nn.Module]]
) -> None:
    path, original = save_from("__main__")
    assert_same(load_model(str(path), model=f"{code}:small").model, original)


def test_classes_that_the_code_file_imports_count_as_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wide_layers.py").write_text("from torch import nn\nclass Wide(nn.ReLU):\n    pass\n")
    (tmp_path / "named.py").write_text("from wide_layers import Wide\n")
    with monkeypatch.context() as trained:
        trained.syspath_prepend(tmp_path)
        torch.save(importlib.import_module("wide_layers").Wide(), tmp_path / "model.pt")
        del sys.modules["wide_layers"]
    loaded = load_model(str(tmp_path / "model.pt"), code=[tmp_path / "named.py"])
    assert type(loaded.model).__name__ == "Wide"


def test_of_two_classes_of_one_name_the_one_in_the_file_of_that_name_is_meant(
    tmp_path: Path, save_from: Callable[[str], tuple[Path, nn.Module]]
) -> None:
    other = tmp_path / "other_nets.py"
    other.write_text(NET.replace("relu", "sigmoid"))
    right = tmp_path / "right_nets.py"
    right.write_text(NET)
    path, original = save_from("project.right_nets")
    loaded = load_model(str(path), code=[other, right])
    assert code_of(loaded.model) == right
    assert_same(loaded.model, original)


def test_a_class_that_no_file_defines_is_named_with_the_option_that_helps(
    tmp_path: Path, save_from: Callable[[str], tuple[Path, nn.Module]]
) -> None:
    path, _ = save_from("__main__")
    with pytest.raises(RefusedFileError, match=r"`__main__\.Net`.*--code FILE\.py"):
        load_model(str(path))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(RefusedFileError, match="--code and --model given do not define them"):
        load_model(str(path), code=[tmp_path / "empty.py"])


def test_names_asked_for_are_those_that_torch_finds(save_from: Callable[[str], tuple[Path, nn.Module]]) -> None:
    from bnfold.files.allowed import Allowed
    from bnfold.files.archive import check_archive, read_entry
    from bnfold.files.pickles import read_pickle

    path, _ = save_from("__main__")
    with path.open("rb") as file:
        entries = check_archive(file)
        mine = read_pickle(read_entry(entries["data.pkl"]), entries, Allowed().known).asked
    theirs = [name for name in get_unsafe_globals_in_checkpoint(str(path)) if not name.startswith("torch.nn.modules.")]
    assert sorted(mine) == sorted(theirs) == ["__main__.Block", "__main__.Net"]


LAYERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Conv1d(2, 2, 3),
    lambda: nn.Conv2d(2, 2, 3, padding="same", padding_mode="reflect"),
    lambda: nn.Conv3d(2, 2, 3).to(memory_format=torch.channels_last_3d),
    lambda: nn.ConvTranspose2d(2, 2, 3, output_padding=0),
    lambda: nn.BatchNorm1d(3),
    lambda: nn.BatchNorm2d(3, track_running_stats=False),
    lambda: nn.BatchNorm3d(3, affine=False),
    lambda: nn.SyncBatchNorm(3),
    lambda: nn.InstanceNorm2d(3, affine=True),
    lambda: nn.GroupNorm(1, 3),
    lambda: nn.LayerNorm(3),
    lambda: nn.RMSNorm(3),
    lambda: nn.LSTM(2, 3, 2, batch_first=True, bidirectional=True),
    lambda: nn.GRUCell(2, 3),
    lambda: nn.MultiheadAttention(4, 2),
    lambda: nn.Embedding(3, 4, padding_idx=0),
    nn.PReLU,
    lambda: nn.ReLU(inplace=True),
    nn.Hardswish,
    lambda: nn.Softmax(1),
    lambda: nn.Threshold(1, 2),
    lambda: nn.Upsample(scale_factor=2.0, mode="bilinear"),
    lambda: nn.PixelShuffle(2),
    lambda: nn.Unflatten(1, (2, 3)),
    lambda: nn.MaxPool2d(2, return_indices=True),
    lambda: nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
    lambda: nn.AdaptiveAvgPool2d((None, 1)),
    lambda: nn.FractionalMaxPool2d(2, output_size=(2, 2)),
    lambda: nn.ZeroPad2d((1, 2, 3, 4)),
    nn.Dropout,
    lambda: nn.ModuleDict({"a": nn.ReLU(), "b": nn.ReLU()}),
    lambda: nn.ParameterList([torch.ones(2)]),
    lambda: nn.ParameterDict({"a": torch.ones(2)}),
    lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 5, [2]),
    lambda: nn.Linear(2, 2).half(),
    lambda: nn.Linear(2, 2, dtype=torch.complex64),
    nn.Sequential,
    lambda: nn.Linear(1, 3, bias=False),
)


@pytest.mark.parametrize("make", LAYERS, ids=lambda make: type(make()).__name__)
def test_torchs_own_layers_load_with_plain_attributes_of_every_sort(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    layer = make()
    layer.some_values = [1, (2.5, None), {"a": {"b": 1}}, {"x", 3}]  # type: ignore[assignment]
    layer.kinds = (torch.float16, torch.device("cpu"), torch.Size((1, 2)), 1j, nn.BatchNorm2d)  # type: ignore[assignment]
    layer.bytes = b"\x00\xff"  # type: ignore[assignment]
    layer.options = argparse.Namespace(width=3)  # type: ignore[assignment]
    torch.save(layer, tmp_path / "model.pt")
    loaded = load_model(str(tmp_path / "model.pt")).model
    assert type(loaded) is type(layer)
    assert str(loaded) == str(layer)
    assert (loaded.some_values, loaded.kinds, loaded.bytes) == (layer.some_values, layer.kinds, layer.bytes)
    assert loaded.options == layer.options
    for mine, theirs in zip(loaded.state_dict().values(), layer.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


def test_shared_layers_and_parameters_stay_shared(tmp_path: Path) -> None:
    conv = nn.Conv2d(2, 2, 1)
    other = nn.Conv2d(2, 2, 1)
    other.weight = conv.weight
    torch.save(nn.Sequential(conv, conv, other), tmp_path / "model.pt")
    loaded: Any = load_model(str(tmp_path / "model.pt")).model
    assert loaded[0] is loaded[1]
    assert loaded[0].weight is loaded[2].weight


def test_a_data_parallel_is_unwrapped(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(nn.Sequential(nn.Linear(2, 2))), tmp_path / "model.pt")
    loaded = load_model(str(tmp_path / "model.pt"))
    assert type(loaded.model) is nn.Sequential
    assert "DataParallel" in loaded.notes[0]


@pytest.mark.parametrize("compressed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_written_again_by_another_tool_loads(compressed: int, tmp_path: Path) -> None:
    layer = nn.Linear(30, 30)
    with (
        zipfile.ZipFile(io.BytesIO(saved(layer))) as before,
        zipfile.ZipFile(tmp_path / "model.pt", "w", compressed) as after,
    ):
        for name in before.namelist():
            after.writestr(name, before.read(name))
    assert torch.equal(load_model(str(tmp_path / "model.pt")).model.weight, layer.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_weights_are_mapped_and_what_is_written_into_them_does_not_reach_the_file(kind: str, tmp_path: Path) -> None:
    path, code = tmp_path / f"model.{kind}", tmp_path / "made.py"
    code.write_text("from torch import nn\ndef net():\n    return nn.Linear(64, 64)\n")
    layer = nn.Linear(64, 64)
    if kind == "pt":
        torch.save(layer, path)
    else:
        safetensors.torch.save_file(layer.state_dict(), path)
    before = path.read_bytes()
    loaded: Any = load_model(str(path), model=None if kind == "pt" else f"{code}:net").model
    assert torch.equal(loaded.weight, layer.weight)
    assert loaded.weight.requires_grad
    place = loaded.weight.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert any(int(low, 16) <= place < int(high, 16) for low, high in (line[0].split("-") for line in maps))
    with torch.no_grad():
        loaded.weight.fill_(1)
    assert path.read_bytes() == before


def test_a_module_with_one_tensor_under_two_names_keeps_it_one(tmp_path: Path) -> None:
    code = tmp_path / "tied.py"
    code.write_text(
        "from torch import nn\ndef net():\n    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))\n"
        "    m[1].weight = m[0].weight\n    return m\n"
    )
    made: Any = resolve_spec(f"{code}:net")
    safetensors.torch.save_file(
        {name: value.clone() for name, value in made.state_dict().items()}, tmp_path / "w.safetensors"
    )
    loaded: Any = load_model(str(tmp_path / "w.safetensors"), model=f"{code}:net").model
    assert loaded[0].weight is loaded[1].weight
    assert torch.equal(loaded[0].weight, made[0].weight)


@pytest.mark.parametrize("kept", ["self.layer.weight", "self.layer.weight.detach().view(-1)", "self.layer.weight.data"])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_what_a_module_keeps_of_its_weights_elsewhere_gets_the_numbers_of_the_file(
    kind: str, kept: str, tmp_path: Path
) -> None:
    code, path = tmp_path / "keeps.py", tmp_path / f"model.{kind}"
    code.write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.layer = nn.Linear(3, 3)\n        self.kept = [{kept}]\n"
    )
    made: Any = resolve_spec(f"{code}:Net")
    if kind == "pt":
        torch.save(made.state_dict(), path)
    else:
        safetensors.torch.save_file(made.state_dict(), path)
    loaded: Any = load_model(str(path), model=f"{code}:Net").model
    assert torch.equal(loaded.layer.weight, made.layer.weight)
    assert torch.equal(loaded.kept[0].reshape(3, 3), made.layer.weight)


def test_a_lazy_module_has_no_place_for_weights_yet(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text("from torch import nn\ndef net():\n    return nn.LazyLinear(3)\n")
    safetensors.torch.save_file(nn.Linear(3, 3).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(RefusedFileError, match="whose `weight` has no shape yet: its layer is lazy"):
        load_model(str(tmp_path / "w.safetensors"), model=f"{tmp_path / 'lazy.py'}:net")


def test_weights_of_another_dtype_are_rounded_to_the_model_s(tmp_path: Path) -> None:
    code = tmp_path / "plain.py"
    code.write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 3)\n")
    weights = {name: value.double() for name, value in nn.Linear(3, 3).state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    loaded: Any = load_model(str(tmp_path / "w.safetensors"), model=f"{code}:net").model
    assert loaded.weight.dtype == torch.float32
    assert torch.equal(loaded.weight, weights["weight"].float())


def test_checksums_that_were_not_computed_are_passed_over(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(nn.Linear(3, 3), tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_model(str(tmp_path / "model.pt")).kind == "pickled module"


def test_a_cached_property_that_was_computed_before_saving_is_no_attack(tmp_path: Path) -> None:
    source = "import functools\nfrom torch import nn\nclass Counted(nn.Identity):\n"
    source += "    @functools.cached_property\n    def width(self):\n        return 3\n"
    (tmp_path / "counted_once.py").write_text(source)
    made: Any = resolve_spec(f"{tmp_path / 'counted_once.py'}:Counted")
    assert made.width == 3
    torch.save(made, tmp_path / "model.pt")
    loaded: Any = load_model(str(tmp_path / "model.pt"), code=[tmp_path / "counted_once.py"]).model
    assert loaded.__dict__["width"] == 3
    made.__dict__["width"] = nn.Identity()
    torch.save(made, tmp_path / "model.pt")
    with pytest.raises(RefusedFileError, match="`width`"):
        load_model(str(tmp_path / "model.pt"), code=[tmp_path / "counted_once.py"])


@pytest.mark.parametrize("what", ["classes", "keys", "functions"])
def test_a_message_stays_short_however_long_the_names_are(what: str, tmp_path: Path, code: Path) -> None:
    from tests.files.forge import name, program, torch_zip, tuple_of

    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    (folder / "model.pt").touch()
    if what == "keys":
        state = {f"{number}" * 30 + "w" * 150: torch.ones(1) for number in range(9)}
        (folder / "model.pt").write_bytes(saved(state | {"scale": torch.ones(7)}))
    else:
        kind = "Net" if what == "classes" else "net"
        names = [name("a" * 99 + f".b{number}." + "c" * 99, kind + "d" * 99) for number in range(9)]
        (folder / "model.pt").write_bytes(torch_zip(program(tuple_of(*names))))
    with pytest.raises(RefusedFileError) as caught:
        load_model(str(folder / "model.pt"), model=f"{code}:Net" if what == "keys" else None)
    assert 300 < len(str(caught.value)) < 400
    assert caught.value.fix in str(caught.value)


# What is left as it was found


@pytest.fixture
def allowed_before() -> Iterator[list[Any]]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([nn.Linear, (nn.ReLU, "their.ReLU"), os.system])
    yield torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_torchs_list_of_allowed_globals_is_left_as_it_was(allowed_before: list[Any], tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "good.pt")
    (tmp_path / "bad.pt").write_bytes(saved(nn.Linear(2, 2))[:-1])
    load_model(str(tmp_path / "good.pt"))
    assert torch.serialization.get_safe_globals() == allowed_before
    with pytest.raises(RefusedFileError):
        load_model(str(tmp_path / "bad.pt"))
    assert torch.serialization.get_safe_globals() == allowed_before


@pytest.mark.usefixtures("allowed_before")
def test_what_the_caller_allowed_elsewhere_is_not_allowed_here(tmp_path: Path) -> None:
    from tests.files.forge import call, program, text, torch_zip

    marker = tmp_path / "marker"
    (tmp_path / "model.pt").write_bytes(torch_zip(program(call("posix", "system", text(f"touch {marker}")))))
    with pytest.raises(RefusedFileError, match=r"`posix\.system`"):
        load_model(str(tmp_path / "model.pt"))
    assert not marker.exists()


@pytest.mark.parametrize("variable", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
def test_the_environment_changes_nothing(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.files.forge import call, program, text, torch_zip

    monkeypatch.setenv(variable, "1")
    marker = tmp_path / "marker"
    (tmp_path / "bad.pt").write_bytes(torch_zip(program(call("posix", "system", text(f"touch {marker}")))))
    with pytest.raises(RefusedFileError, match=r"`posix\.system`"):
        load_model(str(tmp_path / "bad.pt"))
    assert not marker.exists()
    torch.save(nn.Linear(2, 2), tmp_path / "good.pt")
    assert load_model(str(tmp_path / "good.pt")).kind == "pickled module"


# Trust


def test_trust_unpickles_anything(
    tmp_path: Path, code: Path, save_from: Callable[[str], tuple[Path, nn.Module]]
) -> None:
    path, original = save_from("__main__")
    assert_same(load_model(str(path), code=[code], trust=True).model, original)
    model = nn.Sequential(nn.ReLU())
    model.register_forward_hook(_hook)
    torch.save(model, tmp_path / "hooked.pt")
    loaded = load_model(str(tmp_path / "hooked.pt"), trust=True).model
    assert len(loaded._forward_hooks) == 1
    with pytest.raises(RefusedFileError, match="_hook"):
        load_model(str(tmp_path / "hooked.pt"))


def _hook(_module: nn.Module, _inputs: Any, _output: Any) -> None: ...


def test_trust_does_not_mean_damaged(tmp_path: Path) -> None:
    data = bytearray(saved(nn.Linear(64, 64)))
    data[data.index(b"in_features")] ^= 1
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(RefusedFileError, match="checksum"):
        load_model(str(tmp_path / "model.pt"), trust=True)


def test_trust_still_says_which_class_is_missing(save_from: Callable[[str], tuple[Path, nn.Module]]) -> None:
    path, _ = save_from("__main__")
    with pytest.raises(RefusedFileError, match=r"cannot be loaded.*Net.*--code FILE\.py"):
        load_model(str(path), trust=True)


def test_an_exported_program_loads_with_trust_and_can_be_put_into_eval(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    x = torch.randn(2, 1, 6, 6)
    torch.export.save(torch.export.export(model, (x,), strict=False), tmp_path / "model.pt2")
    loaded = load_model(str(tmp_path / "model.pt2"), trust=True)
    assert loaded.kind == "exported program"
    assert torch.equal(loaded.model.eval()(x), model(x))
    assert not any(part.training for part in loaded.model.modules())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_loads_with_trust_and_says_that_it_cannot_be_folded(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2).eval(), torch.ones(1, 2)), tmp_path / "model.pt")
    loaded = load_model(str(tmp_path / "model.pt"), trust=True)
    assert loaded.kind == "TorchScript"
    assert "cannot fold" in loaded.notes[0]
    assert loaded.model(torch.ones(1, 2)).shape == (1, 2)


def test_the_step_that_is_told_for_the_old_format_helps(tmp_path: Path) -> None:
    from tests.networks import seed_network

    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    state = seed_network().state_dict()
    torch.save(state, old, _use_new_zipfile_serialization=False)
    with pytest.raises(RefusedFileError, match="in torch's old pickle format") as caught:
        load_model(str(old), model="tests.networks:seed_network")
    line = caught.value.fix.split("`")[1].replace("OLD", str(old)).replace("NEW", str(new))
    subprocess.run(shlex.split(line.replace("python ", f"{sys.executable} ", 1)), check=True)
    loaded = load_model(str(new), model="tests.networks:seed_network").model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
