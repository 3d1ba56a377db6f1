"""The user's own code: specs and files; nothing else is run and nothing is hidden by it."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from torch import nn

from bnfold.errors import UsageError
from bnfold.files.load import load_model, looks_like_spec, resolve_spec
from tests.files.forge import PROTO
from tests.files.nets import NET

ROOT = Path(__file__).resolve().parents[2]


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
    with pytest.raises(UsageError, match="already names a model"):
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


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for timm, which lists models by name and has no function of that name itself."""
    made = types.ModuleType("timm")
    made.__spec__ = ModuleSpec("timm", None)
    made.list_models = lambda: ["densenet121", "densenet169", "vgg11"]  # type: ignore[attr-defined]
    made.create_model = lambda name: nn.Sequential(nn.Linear(2, len(name)))  # type: ignore[attr-defined]
    made.Head = nn.ReLU  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", made)


@pytest.mark.usefixtures("zoo")
def test_a_model_of_a_collection_is_made_by_its_name() -> None:
    made = resolve_spec("timm:densenet121")
    assert isinstance(made, nn.Sequential)
    assert made[0].out_features == len("densenet121")
    assert resolve_spec("timm:densenet121.tv_in1k")[0].out_features == len("densenet121.tv_in1k")  # type: ignore[index]
    assert isinstance(resolve_spec("timm:Head"), nn.ReLU)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("densnet121", "Did you mean `densenet121`, `densenet169`?"),
        ("nothing_like_it", "It has `densenet121`, `densenet169`, `vgg11`."),
    ],
)
def test_a_name_that_a_collection_lacks_is_answered_with_near_ones(name: str, fix: str) -> None:
    with pytest.raises(UsageError, match=f"timm has no model `{name}`") as caught:
        resolve_spec(f"timm:{name}")
    assert caught.value.fix == fix


def test_a_name_that_a_module_lacks_is_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"no `nn\.ReLu`") as caught:
        resolve_spec("torch:nn.ReLu")
    assert "`ReLU`" in caught.value.fix


def test_a_collection_of_models_that_is_missing_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError) as caught:
        resolve_spec("timm:resnet18")
    assert caught.value.fix == "Run `pip install timm`."
