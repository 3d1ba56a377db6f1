"""The recipes for other libraries run where those are installed, each in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {  # the library, what the script is given, and what it says
    "segmentation.py": ("segmentation_models_pytorch", ["Unet"], "Unet: 30 of 30 BatchNorms folded, equivalent"),
    "timm_reparameterize.py": (
        "timm",
        ["repvgg_a0"],
        "22 after reparameterize_model, 22 after merge=True (22 merges); equivalent",
    ),
    "ultralytics_yolo.py": ("ultralytics", ["yolov8n.yaml"], "57 of 57 BatchNorms folded, equivalent"),
}
RUN = """
import runpy, sys
from benchmarks import shim
shim.load("torchvision")  # the wheel for CUDA beside a torch for the CPU
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_recipe_is_run_and_has_its_page() -> None:
    assert {path.name for path in (ROOT / "examples" / "libraries").glob("*.py")} == set(RECIPES)
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "howto").glob("*.md"))
    for name in RECIPES:
        assert f"examples/libraries/{name}" in pages


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_runs_where_its_library_is_installed(name: str, tmp_path: Path) -> None:
    library, arguments, says = RECIPES[name]
    for needed in (library, "torchvision"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "YOLO_CONFIG_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, f"examples/libraries/{name}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
