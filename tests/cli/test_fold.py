"""``bnfold fold``: the seed network end to end, and every way in which it can end."""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ET
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from bnfold.verify.report import Comparison, Report
from bnfold.verify.runtime import OrtModel
from tests.cli.conftest import CODE, ROOT, Run
from tests.networks import seed_network


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_seed_network_folds_and_its_export_holds_no_trace_of_the_batchnorm(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE)
    assert result.code == 0, result.err
    assert "bn1 folded backward conv1 pool" in " ".join(result.out.split())
    assert "equivalent in " in result.out
    assert "2x1x28x28" in result.err
    kinds = operators(seed_file.with_name("model.folded.onnx"))
    assert kinds[:3] == ["Conv", "MaxPool", "Relu"]
    assert kinds[3:] in (["Reshape", "Gemm"], ["Flatten", "Gemm"])


def test_the_outputs_compute_what_the_model_computes(run: Run, seed_file: Path) -> None:
    assert run("fold", seed_file, *CODE).code == 0
    images = torch.randn(3, 1, 28, 28)
    program = torch.export.load(seed_file.with_name("model.folded.pt2"))
    with torch.no_grad():
        folded, original = program.module()(images), seed_network()(images)
    assert float((folded - original).abs().max()) < 1e-5 * float(original.abs().max())


def test_a_negative_scale_gives_an_explicit_affine_and_passes(run: Run, negative_file: Path) -> None:
    result = run("fold", negative_file, *CODE)
    assert result.code == 0, result.err
    assert "explicit affine" in result.out
    assert "1 of 32 scales is negative" in result.out
    assert "equivalent" in result.out
    assert "BatchNormalization" not in operators(negative_file.with_name("negative.folded.onnx"))


def test_strict_exits_4_and_writes_a_report_but_no_model(run: Run, negative_file: Path) -> None:
    result = run("fold", negative_file, *CODE, "--strict", "--report", "r.xml")
    assert result.code == 4
    assert "--strict: 1 of 1 BatchNorm did not fold. No model was written." in result.err
    folder = negative_file.parent
    assert sorted(path.name for path in folder.iterdir()) == ["negative.pt", "r.xml"]
    assert len(ET.parse(folder / "r.xml").findall(".//failure")) == 1
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("wrote")] == ["r.xml"]


def test_strict_is_content_where_everything_folds(run: Run, seed_file: Path) -> None:
    assert run("fold", seed_file, *CODE, "--strict", "--no-verify", "-o", "x.safetensors").code == 0


def test_keep_leaves_a_batchnorm(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "--keep", "bn1", "-o", "x.safetensors")
    assert result.code == 0, result.err
    assert "0 folded, 0 explicit affine, 1 kept" in result.out
    assert any("running_mean" in name for name in safetensors.torch.load_file("x.safetensors"))


def test_keep_of_a_wrong_name_is_a_usage_error_with_the_right_one(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "--keep", "bn2")
    assert result.code == 2
    assert "bn1" in result.err


def test_weights_are_written_as_safetensors(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "-o", "out.safetensors")
    assert result.code == 0, result.err
    weights = safetensors.torch.load_file("out.safetensors")
    assert set(weights) == {"conv1.weight", "conv1.bias", "fc1.weight", "fc1.bias"}
    assert torch.equal(weights["fc1.weight"], seed_network().fc1.weight)
    assert not Path("model.folded.onnx").exists()


def test_a_spec_is_a_model_and_its_outputs_stand_in_the_current_folder(run: Run, tmp_path: Path) -> None:
    spec = f"{ROOT / 'examples' / 'negative_gammas.py'}:Net"
    result = run("fold", spec, "--no-verify")
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Net.folded.onnx", "Net.folded.pt2"]
    assert "random weights" in result.err
    assert "switched to eval mode" in result.err


def test_a_state_dict_works_with_the_model_it_belongs_to(run: Run, tmp_path: Path) -> None:
    torch.save({"state_dict": seed_network().state_dict()}, tmp_path / "weights.pth")
    spec = f"{ROOT / 'examples' / 'seed_network.py'}:Net"
    result = run("fold", "weights.pth", "--model", spec, "-o", "x.pt2")
    assert result.code == 0, result.err
    assert "equivalent" in result.out


def test_a_model_saved_in_training_mode_is_switched_to_eval_and_the_output_says_so(run: Run, tmp_path: Path) -> None:
    torch.save(seed_network().train(), tmp_path / "model.pt")
    result = run("fold", "model.pt", *CODE, "-o", "x.pt2")
    assert result.code == 0, result.err
    assert "was in training mode" in result.err
    assert "switched to eval mode" in result.err


def test_a_model_in_eval_mode_is_not_said_to_be_switched(run: Run, seed_file: Path) -> None:
    assert "training mode" not in run("fold", seed_file, *CODE, "-o", "x.safetensors", "--no-verify").err


def test_no_verify_says_that_nothing_was_verified(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "--no-verify", "-o", "x.safetensors")
    assert result.code == 0
    assert "not verified" in result.out


def test_real_inputs_are_verified_on(run: Run, seed_file: Path) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(3, 1, 28, 28)))
    result = run("fold", seed_file, *CODE, "--inputs", "x.npy", "-o", "x.pt2")
    assert result.code == 0, result.err
    assert "3x1x28x28 (from x.npy)" in result.err


def test_a_given_shape_is_used(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "--input-shape", "1x1x28x28", "-o", "x.pt2")
    assert result.code == 0, result.err
    assert "1x1x28x28 (given with --input-shape)" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument 'MODEL'"),
        (["model.pt", "--nonsense"], 2, "No such option"),
        (["model.pt", *CODE, "-o", "x.txt"], 2, "names no kind of model"),
        (["model.pt", *CODE, "-o", "x.pt2", "-o", "x.pt2"], 2, "are the same file"),
        (["model.pt", *CODE, "-o", "model.pt"], 2, "names no kind of model"),
        (["model.pt", *CODE, "--report", "r.txt"], 2, "names no format"),
        (["model.pt", *CODE, "--input-shape", "1,0,3"], 2, "is not a shape"),
        (["model.pt", *CODE, "--input-shape", "1,3,28,28"], 2, "does not run on"),
        (["model.pt", *CODE, "--input-shape", "2,1,28,28", "--inputs", "x.npy"], 2, "were both given"),
        (["model.pt", *CODE, "--inputs", "missing.npy"], 5, "There is no file"),
        (["model.pt"], 3, "--code"),
        (["missing.pt"], 5, "There is no file"),
        (["model.pt", *CODE, "-o", "nowhere/x.onnx"], 5, "There is no folder"),
        (["."], 3, "folder"),
    ],
)
def test_a_mistake_has_its_exit_code_one_sentence_and_no_output(
    run: Run, seed_file: Path, arguments: list[str], code: int, said: str
) -> None:
    before = sorted(seed_file.parent.iterdir())
    result = run("fold", *arguments)
    assert result.code == code, result.err
    assert said in result.err
    assert "error: " in result.err
    assert "fix: " in result.err
    assert "Traceback" not in result.err + result.out
    assert sorted(seed_file.parent.iterdir()) == before


@pytest.mark.parametrize("how", ["into", "over"])
def test_a_model_that_is_written_to_meanwhile_is_not_folded(
    how: str, run: Run, seed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are mapped. One that takes the place of another leaves that one to those who opened it."""
    from bnfold.cli import outputs

    content, own = seed_file.read_bytes(), outputs.write_outputs

    def write(*args: Any, **kwargs: Any) -> Any:
        if how == "over":
            seed_file.unlink()
        seed_file.write_bytes(content)
        os.utime(seed_file, ns=(1, 1))
        return own(*args, **kwargs)

    monkeypatch.setattr(outputs, "write_outputs", write)
    result = run("fold", seed_file, *CODE, "-o", "w.safetensors", "--no-verify")
    if how == "over":
        assert result.code == 0, result.err
    else:
        assert (result.code, "was written to while bnfold worked with it" in result.err) == (5, True)
    assert Path("w.safetensors").exists() == (how == "over")


def test_an_existing_file_is_kept_unless_forced(run: Run, seed_file: Path) -> None:
    Path("x.safetensors").write_text("precious")
    arguments = ("fold", seed_file, *CODE, "--no-verify", "-o", "x.safetensors")
    result = run(*arguments)
    assert result.code == 5
    assert "--force" in result.err
    assert Path("x.safetensors").read_text() == "precious"
    assert run(*arguments, "--force").code == 0
    assert Path("x.safetensors").read_bytes() != b"precious"


def fails(verdict: str, located: str | None) -> Report:
    comparison = Comparison("torch", 1.0, 2.0, 0.5, 1e-7, 8e-7, passed=False, detail="far off")
    return Report(verdict, (comparison,), reason="torch: far off.", located=located)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (fails("failed", "bn1"), "--keep bn1"),
        (fails("failed", None), "not equivalent to the original"),
        (fails("unverifiable", None), "cannot be shown"),
    ],
)
def test_a_failed_verification_exits_1_and_writes_only_the_report(
    run: Run, seed_file: Path, monkeypatch: pytest.MonkeyPatch, report: Report, said: str
) -> None:
    monkeypatch.setattr(import_module("bnfold.verify.api"), "verify", lambda *_args, **_options: report)
    result = run("fold", seed_file, *CODE, "--report", "r.json")
    assert result.code == 1
    assert said in result.err
    assert "FAILED far off" in result.out
    assert "wrote r.json" in result.out
    assert sorted(path.name for path in seed_file.parent.iterdir()) == ["model.pt", "r.json"]
    data = json.loads(Path("r.json").read_text())
    assert data["verification"]["passed"] is False
    assert (data["exit_code"], data["outputs"]) == (1, [])


def test_a_really_wrong_fold_is_caught(run: Run, seed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = import_module("bnfold.fold.api")
    right = api.fold

    def wrong(model: nn.Module, *args: object, **options: object) -> object:
        folding = right(model, *args, **options)
        with torch.no_grad():
            next(p for name, p in folding.module.named_parameters() if name == "conv1.bias")[3] += 1e-3
        return folding

    monkeypatch.setattr(api, "fold", wrong)
    result = run("fold", seed_file, *CODE)
    assert result.code == 1, result.out
    assert "not equivalent" in result.out
    assert not Path("model.folded.onnx").exists()


def test_the_reports_tell_what_was_written(run: Run, seed_file: Path) -> None:
    result = run(
        "fold", seed_file, *CODE, "-o", "x.onnx", "--report", "r.json", "--report", "r.md", "--report", "r.xml"
    )
    assert result.code == 0, result.err
    data = json.loads(Path("r.json").read_text())
    assert data["schema"] == 1
    assert data["summary"] == {"fold": 1, "affine": 0, "keep": 0}
    assert data["outputs"][0]["sha256"] == sha256(Path("x.onnx").read_bytes()).hexdigest()
    names = [item["name"] for item in data["verification"]["comparisons"]]
    assert {"float64 algebra", "torch"} <= set(names)
    assert sum("ONNX Runtime" in name for name in names) == 2
    assert data["inputs"]["shapes"] == "2x1x28x28"
    assert "✅ equivalent" in Path("r.md").read_text(encoding="utf-8")
    assert not ET.parse("r.xml").findall(".//failure")
    told = [line.split()[1] for line in result.out.splitlines() if line.startswith("wrote ")]
    assert told == ["x.onnx", "r.json", "r.md", "r.xml"]


def test_a_report_on_stdout_is_json_and_nothing_else_stands_there(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "-o", "x.pt2", "--report", "-")
    assert result.code == 0, result.err
    assert json.loads(result.out)["batchnorms"][0]["into"] == ["conv1"]
    assert "folded backward" in result.err


def test_what_the_users_code_prints_does_not_reach_stdout(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import torch\n"
        "class Loud(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        print('made')\n"
        "        self.conv, self.bn = torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)\n"
        "    def forward(self, x):\n"
        "        print('running')\n"
        "        return self.bn(self.conv(x))\n"
    )
    result = run("fold", "loud.py:Loud", "-o", "x.safetensors", "--report", "-")
    assert result.code == 0, result.err
    assert json.loads(result.out)["summary"]["fold"] == 1
    assert "made" in result.err


def test_quiet_prints_nothing_but_errors(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "--no-verify", "-o", "x.safetensors", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert "error: " in run("fold", seed_file, *CODE, "--no-verify", "-o", "x.safetensors", "-q").err


def test_verbose_tells_every_row_and_where_the_time_goes(run: Run, seed_file: Path) -> None:
    result = run("fold", seed_file, *CODE, "-o", "x.pt2", "-v")
    assert result.code == 0, result.err
    assert "seed_network.py:" in result.out
    stages = [line.split()[0] for line in result.out.split("stage")[1].splitlines()[2:] if line.strip()]
    assert stages[:2] == ["import", "load"]
    assert stages[stages.index("fold") :][:4] == ["fold", "capture", "plan", "rewrite"]
    assert stages[stages.index("verify") + 1 : -2]  # what of it took how long
    assert stages[-2:] == ["write", "total"]


def test_the_same_run_writes_the_same_onnx(run: Run, seed_file: Path) -> None:
    contents = []
    for name in ("a.onnx", "b.onnx"):
        assert run("fold", seed_file, *CODE, "--no-verify", "-o", name).code == 0
        contents.append(Path(name).read_bytes())
    assert contents[0] == contents[1]


def test_a_network_of_many_batchnorms_is_told_in_few_lines(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deep.py").write_text(
        "from torch import nn\n"
        "def deep():\n"
        "    pairs = ((nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)) for _ in range(40))\n"
        "    return nn.Sequential(*(layer for pair in pairs for layer in pair))\n"
    )
    result = run("fold", "deep.py:deep", "--no-verify", "-o", "x.safetensors")
    assert result.code == 0, result.err
    assert "40 BatchNorms: 40 folded" in result.out
    assert len(result.out.splitlines()) < 8


@pytest.mark.parametrize(("name", "code"), [("::error::|<b>", 0), ("::error::\\x1b[31m", 6)])
def test_a_refusal_of_a_hostile_name_reaches_the_terminal_as_text(
    run: Run, tmp_path: Path, name: str, code: int
) -> None:
    (tmp_path / "hostile.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    model = nn.Sequential()\n"
        f"    model.add_module('{name}', nn.BatchNorm2d(3))\n"
        "    model.add_module('relu', nn.ReLU())\n"
        "    return model\n"
    )
    result = run("fold", "hostile.py:net", "--no-verify", "-o", "x.safetensors", "--report", "r.md")
    assert result.code == code, result.err
    report = Path("r.md").read_text(encoding="utf-8") if code == 0 else ""
    for text in (result.out, result.err, report):
        assert "\x1b" not in text
        assert not any(line.lstrip().startswith("::") for line in text.splitlines())
    assert "error" in result.err + report
    assert "<b>" not in report


def test_denormal_weights_are_told_and_flushed_on_demand(run: Run, seed_file: Path) -> None:
    weights = seed_network().state_dict()
    weights["conv1.weight"][3] = 1e-30
    weights["bn1.weight"][3] = 1e-10
    torch.save(weights, "dying.pth")
    of_it = ("dying.pth", "--model", f"{CODE[1]}:Net", "-o", "x.safetensors", "--force")

    result = run("fold", *of_it)
    assert result.code == 0, result.err
    assert "9 weights became denormal" in " ".join(result.err.split())
    assert (safetensors.torch.load_file("x.safetensors")["conv1.weight"][3] != 0).all()

    result = run("fold", *of_it, "--flush-denormals")
    assert result.code == 0, result.err
    assert "9 weights that the fold made denormal were set to zero: conv1.weight (9)" in " ".join(result.err.split())
    assert not safetensors.torch.load_file("x.safetensors")["conv1.weight"][3].any()


def test_a_file_of_code_may_teach_a_module(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import torch
from torch import nn
from bnfold import extend

class Leaky(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, x, 0.1 * x)

def make():
    return nn.Sequential(nn.Conv2d(1, 2, 3), Leaky(), nn.BatchNorm2d(2, affine=False)).eval()

extend.passes(Leaky, scale="nonnegative", shift="zero")
"""
    (tmp_path / "taught.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(import_module("taught").make(), "taught.pt")
    del sys.modules["taught"]  # what it taught is known of this Leaky, and not of the one that --code defines
    result = run("fold", "taught.pt", "--code", "taught.py", "--strict", "-o", "t.safetensors")
    assert result.code == 0, result.err
    assert "folded backward" in result.out


def test_large_weights_stand_beside_each_onnx_file(
    run: Run, seed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.export.onnx_model.APART", 1000)
    result = run("fold", seed_file, *CODE, "-o", "one.onnx", "-o", "two.onnx", "--report", "r.json")
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[:3] in ("one", "two", ".bn")) == [
        "one.onnx", "one.onnx.data", "two.onnx", "two.onnx.data",
    ]  # fmt: skip
    told = {entry["path"]: entry["sha256"] for entry in json.loads(Path("r.json").read_text())["outputs"]}
    assert told["one.onnx.data"] == sha256(Path("one.onnx.data").read_bytes()).hexdigest()
    images = torch.randn(3, 1, 28, 28)
    Path("one.onnx").unlink()  # the second has weights of its own
    Path("one.onnx.data").unlink()
    (answer,) = OrtModel(Path("two.onnx"), "full")(images)
    expected = seed_network()(images).detach()
    assert float((answer - expected).abs().max()) < 1e-5 * float(expected.abs().max())
