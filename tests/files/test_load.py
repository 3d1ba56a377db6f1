"""Loading what users have: pickled modules, weights, specs; with torch left as it was found."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from bnfold.errors import RefusedFileError, UsageError
from bnfold.files.load import LoadedModel, load_model, looks_like_spec, resolve_spec
from tests.files.forge import PROTO, saved

ROOT = Path(__file__).resolve().parents[2]

NET = """
import torch
from torch import nn

class Block(nn.Module):
    expansion = 4
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2)
    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.expansion = 3
        self.norm_layer = nn.BatchNorm2d
        self.settings = {"width": 2, "names": ["a", ("b", 1.5)], 3: None}
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(2, 1, 1))
        self.scale.no_weight_decay = True
        self.register_buffer("table", torch.arange(6).reshape(2, 3).t())
        self.register_buffer("halves", torch.ones(2, dtype=torch.bfloat16), persistent=False)
    def forward(self, x):
        for block in self.blocks:
            x = block(x) * self.scale
        return x

def small():
    return Net()

net = Net()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "nets_for_load.py"
    path.write_text(NET)
    return path


def make_net(module_name: str) -> tuple[types.ModuleType, nn.Module]:
    """Return a Net whose classes say that they come from ``module_name``."""
    module = types.ModuleType(module_name)
    exec(compile(NET, "<net>", "exec"), module.__dict__)
    torch.manual_seed(5)
    net: nn.Module = module.small()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 2.0) if "running_var" in name else nn.init.normal_(value)
    return module, net


@pytest.fixture
def save_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Path, nn.Module]]:
    """Save a Net as if from a script or module of the given name."""

    def save(module_name: str) -> tuple[Path, nn.Module]:
        module, net = make_net(module_name)
        with monkeypatch.context() as patch:
            parents = module_name.split(".")[:-1]
            for depth in range(len(parents)):
                parent = ".".join(parents[: depth + 1])
                patch.setitem(sys.modules, parent, types.ModuleType(parent))
            patch.setitem(sys.modules, module_name, module)
            torch.save(net, tmp_path / "model.pt")
        return tmp_path / "model.pt", net

    return save


def code_of(model: nn.Module) -> Path:
    return Path(str(sys.modules[type(model).__module__].__file__))


def assert_same(loaded: nn.Module, original: nn.Module) -> None:
    x = torch.randn(2, 2, 5, 5)
    assert loaded.state_dict().keys() == original.state_dict().keys()
    for (name, mine), theirs in zip(loaded.state_dict().items(), original.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.dtype == theirs.dtype
        assert mine.stride() == theirs.stride()
    assert torch.equal(loaded.eval()(x), original.eval()(x))


# Pickled modules


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


def test_classes_that_the_code_file_imports_count_as_named(tmp_path: Path) -> None:
    (tmp_path / "wide_layers.py").write_text("from torch import nn\nclass Wide(nn.ReLU):\n    pass\n")
    (tmp_path / "named.py").write_text("from wide_layers import Wide\n")
    script = f"import torch, sys; sys.path.insert(0, {str(tmp_path)!r}); import wide_layers\n"
    script += f"torch.save(wide_layers.Wide(), {str(tmp_path / 'model.pt')!r})\n"
    subprocess.run([sys.executable, "-c", script], check=True)
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
        mine = read_pickle(read_entry(file, entries["data.pkl"]), entries, Allowed().known).asked
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


def test_checksums_that_were_not_computed_are_passed_over(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(nn.Linear(3, 3), tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_model(str(tmp_path / "model.pt")).kind == "pickled module"


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
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
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


# Weights


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
    assert loaded.notes == (() if not prefix else (f"The prefix `{prefix}` was taken off the weights' names.",))
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
    from bnfold.files.weights import read_safetensors
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


# Specs


@pytest.mark.parametrize("name", ["Net", "small", "net"])
def test_a_spec_is_a_class_a_function_or_a_module(name: str, code: Path) -> None:
    loaded = load_model(f"{code}:{name}")
    assert (loaded.kind, loaded.name) == ("spec", name)
    assert type(loaded.model).__name__ == "Net"


def test_a_spec_may_be_in_a_package_and_have_dots() -> None:
    assert type(resolve_spec("torch.nn:ReLU")) is nn.ReLU
    assert type(resolve_spec("torch:nn.ReLU")) is nn.ReLU


def test_a_spec_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_in_the_current_folder.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in {"", str(tmp_path)}])
    assert type(resolve_spec("nets_in_the_current_folder:small")).__name__ == "Net"


def test_a_file_is_run_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "counted.py"
    path.write_text(NET)
    assert type(resolve_spec(f"{path}:Net")) is type(resolve_spec(f"{path}:Net"))
    path.write_text(NET + "\nclass More(Net):\n    pass\n")
    assert type(resolve_spec(f"{path}:More")).__name__ == "More"


@pytest.mark.parametrize("stem", ["torch", "types", "random", "not-a-name", "1st", "onnx"])
def test_a_code_file_never_hides_a_module(stem: str, tmp_path: Path) -> None:
    before = sys.modules.get(stem)
    path = tmp_path / f"{stem}.py"
    path.write_text(NET)
    assert type(resolve_spec(f"{path}:Net")).__name__ == "Net"
    assert sys.modules.get(stem) is before


def test_a_neighbour_of_the_code_file_does_not_stand_in_for_a_package(tmp_path: Path) -> None:
    (tmp_path / "fractions.py").write_text("raise SystemExit('the neighbour was imported')\n")
    (tmp_path / "uses.py").write_text("import sys\nsys.modules.pop('fractions', None)\nimport fractions\n" + NET)
    assert type(resolve_spec(f"{tmp_path / 'uses.py'}:Net")).__name__ == "Net"


@pytest.mark.parametrize(
    ("source", "is_spec"),
    [
        ("torchvision.models:resnet50", True),
        ("a:b", True),
        ("path/to/file.py:Net", True),
        ("../up.py:Net.small", True),
        ("model.pt", False),
        ("C:\\models\\model.pt", False),
        ("C:/models/model.pt", False),
        ("file.py", False),
        ("file.py:", False),
        (":Net", False),
        ("path/to/file.txt:Net", False),
        ("a b:c", False),
        ("a:b-c", False),
        ("", False),
    ],
)
def test_what_looks_like_a_spec(source: str, is_spec: bool) -> None:
    assert looks_like_spec(source) is is_spec


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2), "epoch:3")
    assert not looks_like_spec("epoch:3")
    assert load_model("epoch:3").kind == "pickled module"


def test_model_and_key_make_no_sense_with_a_spec(code: Path) -> None:
    with pytest.raises(UsageError, match="is a model already"):
        load_model(f"{code}:Net", model="torch.nn:ReLU")


def test_importing_the_loader_imports_no_torch() -> None:
    script = "import sys, bnfold.files.load, bnfold.files.save, bnfold.files.kinds\n"
    script += "assert not {'torch', 'onnx', 'numpy', 'safetensors'} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_the_forge_writes_what_torch_reads() -> None:
    from tests.files.forge import dict_of, program, storage, tensor, torch_zip

    content = torch_zip(program(dict_of(w=tensor(storage("0", 4), (2, 2), (2, 1)))), {"0": bytes(16)})
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    assert torch.equal(loaded["w"], torch.zeros(2, 2)), "otherwise the corpus would be refused for the wrong reason"
    assert PROTO == b"\x80\x02"
