"""The examples run, all of them, as a reader would run them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from examples.seed_network import Net, train, with_negative_gamma

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
ARGUMENTS = {  # what each script is given; {out} is an empty folder
    "seed_network.py": ["{out}/model.pt", "--epochs", "1"],
    "resnet.py": ["{out}/resnet18.onnx"],
    "negative_gammas.py": [],
    "teach_a_module.py": [],
    "quantise.py": [],
    "quantise_pt2e.py": [],
}
NEEDS = {"quantise_pt2e.py": "torchao"}
SAYS = {
    "seed_network.py": "unseen digits right",
    "resnet.py": "20 of 20 BatchNorms folded",
    "teach_a_module.py": "2 folded into 0 through 1.\n6 folded into 4 through 5.\nequivalent",
    "quantise.py": "folded      int8 error 0.",
    "quantise_pt2e.py": "of unseen digits right, 0 BatchNorm in float32",
    "negative_gammas.py": "bn1: fold. bn1 folded into conv1 through pool.\nbn1: affine. ",
}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def test_examples_are_found() -> None:
    scripts = {name for name in EXAMPLES if not name.startswith("test_")}
    assert scripts == set(ARGUMENTS)
    assert any(name.startswith("test_") for name in EXAMPLES)


SLOW = {"quantise.py", "resnet.py"}  # a training, two exports and two quantisations; a proof of a ResNet-18


QUICK = ("seed_network.py", "negative_gammas.py", "teach_a_module.py")
ONE_AFTER_THE_OTHER = """
import runpy, shlex, sys
for line in sys.argv[1:]:
    sys.argv[:] = shlex.split(line)
    sys.path[0] = "examples"
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_quick_scripts_run_and_say_what_they_should(tmp_path: Path) -> None:
    """In one process, which imports torch and the rest once."""
    lines = [
        shlex.join([f"examples/{name}", *(part.format(out=tmp_path) for part in ARGUMENTS[name])]) for name in QUICK
    ]
    done = python("-W", "error", "-c", ONE_AFTER_THE_OTHER, *lines)
    assert done.returncode == 0, done.stderr
    for name in QUICK:
        assert SAYS[name] in done.stdout
    assert (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in SLOW else ())
        for name in sorted(ARGUMENTS.keys() - set(QUICK))
    ],
)
def test_a_script_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    strict = ("-W", "error")
    if name in NEEDS:  # an optional package's own warnings are its own affair
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
        strict = ()
    done = python(*strict, f"examples/{name}", *(part.format(out=tmp_path) for part in ARGUMENTS[name]))
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
    for exported in tmp_path.glob("*.onnx"):
        kinds = {node.op_type for node in onnx.load(exported).graph.node}
        assert "Conv" in kinds
        assert "BatchNormalization" not in kinds


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("test_")])
@pytest.mark.long  # the workflow's steps run it too: test_workflow
def test_an_example_test_passes(name: str) -> None:
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"examples/{name}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_seed_network_learns_and_its_training_leaves_no_negative_scale() -> None:
    net, accuracy = train()
    assert accuracy > 0.9
    assert bool((net.bn1.weight > 0).all())
    assert not net.training


def test_training_is_the_same_each_time() -> None:
    (first, _), (again, _) = train(epochs=1), train(epochs=1)
    assert torch.equal(first.fc1.weight, again.fc1.weight)


def test_the_variant_has_one_negative_scale() -> None:
    assert int((with_negative_gamma(Net()).bn1.weight < 0).sum()) == 1
