"""Other versions of torch and Python: core tests, exports and demo, each in an environment of its own.

    python benchmarks/matrix.py [PYTHON:TORCH ...]      (all of ROWS; `make matrix`)

One at a time: the environment is made by uv, used, and deleted, since a build of torch with CUDA takes 5 GB and more. A
record goes to ``benchmarks/results/versions.jsonl`` when a row ends; run again, what has no record yet is done. Last,
``docs/versions.py`` writes the page. MATRIX_FOLDER says where the environments are made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "versions.jsonl"

ROWS = ("3.11:2.6", "3.11:2.8", "3.11:2.10", "3.11:2.13", "3.11:2.14", "3.10:2.6", "3.12:2.10", "3.13:2.14")
"""The first and the last, and some between; each Python once more with one of them."""

CORE = (
    "tests/test_affine.py tests/ops tests/fold/test_rules.py tests/fold/test_sideways.py tests/fold/test_merge.py "
    "tests/fold/test_explicit.py tests/fold/test_result.py tests/graph/test_recorded.py tests/graph/test_ways.py "
    "tests/graph/test_outputs.py tests/graph/test_torch_versions.py tests/graph/test_dataless.py "
    "tests/graph/test_known_results.py tests/graph/test_exact_types.py tests/export/test_onnx.py "
    "tests/export/test_folding.py tests/verify/test_api.py tests/files/test_formats.py"
).split()

PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Limit:
    """What versions of torch before one cannot do, and bnfold with them.

    Attributes:
        before: the first that can.
        sentence: what it is, and what happens.
        tests: those that show it, and are left out with older ones.
    """

    before: tuple[int, int]
    sentence: str
    tests: tuple[str, ...]


LIMITS = (
    Limit(
        (2, 8),
        "`torch.onnx.export(..., dynamo=True)`, called by yourself, does not tell a folded model that it is for ONNX: "
        "an explicit affine is exported as a BatchNormalization, which that exporter cannot write beside a recent "
        "onnxscript. `bnfold.export_onnx` and the command line do it right.",
        (
            "tests/fold/test_explicit.py::test_the_user_s_own_onnx_export_has_no_batch_normalization",
            "tests/fold/test_explicit.py::test_the_onnx_form_computes_the_same_under_onnxruntime",
        ),
    ),
    Limit(
        (2, 8),
        "`torch.export` decides on more sizes. A batch stays fixed where the code makes tensors of its size "
        "(`torch.zeros(len(x), ...)`) or transforms it (`torch.fft`), with a note.",
        ("tests/verify/test_api.py::test_outputs_of_another_dtype_are_judged_by_the_precision_of_the_weights",),
    ),
)


def main() -> None:
    """Do the rows that have no record, and write the page."""
    os.nice(10)
    for row in sys.argv[1:] or ROWS:
        python, torch = row.split(":")
        if not any((record["python"], record["torch"]) == (python, torch) for record in records()):
            with tempfile.TemporaryDirectory(prefix="matrix-", dir=os.environ.get("MATRIX_FOLDER")) as folder:
                record = measured(python, torch, Path(folder))
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)
    run([sys.executable, "docs/versions.py"])


def records() -> list[dict[str, Any]]:
    """Return what was measured so far."""
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else []
    return [json.loads(line) for line in lines]


def measured(python: str, torch: str, folder: Path) -> dict[str, Any]:
    """Make an environment in a folder, try everything in it, and return the record."""
    begin = time.perf_counter()
    record: dict[str, Any] = {"python": python, "torch": torch}
    interpreter = shutil.which(f"python{python}")
    if interpreter is None or run([interpreter, "--version"]).returncode != 0:
        return record | {"error": f"no python{python} here"}
    uv = [sys.executable, "-m", "uv", "--quiet", "--cache-dir", str(folder / "cache")]
    run([*uv, "venv", "--python", interpreter, str(folder / "venv")])
    here = str(folder / "venv" / "bin" / "python")
    needs = [f"torch=={torch}.*", "--editable", str(ROOT), "pytest", "pytest-timeout", "hypothesis", "scikit-learn"]
    installed = run([*uv, "pip", "install", "--python", here, *needs])
    if installed.returncode != 0:
        return record | {"error": " ".join(installed.stderr.split())[:200] or "uv failed"}
    record["installed"] = versions(here)
    record["seconds_to_install"] = round(time.perf_counter() - begin)
    record["core"] = core(here, torch)
    record["export"] = export(here)
    record["demo"] = demo(here, folder)
    return record | {"seconds": round(time.perf_counter() - begin)}


def versions(python: str) -> dict[str, str]:
    """Return the versions of the packages that matter in an environment."""
    code = f"import json, importlib.metadata as m; print(json.dumps({{p: m.version(p) for p in {PACKAGES!r}}}))"
    found: dict[str, str] = json.loads(run([python, "-c", code]).stdout)
    return found


def core(python: str, torch: str) -> dict[str, Any]:
    """Run the core tests, without those of the limits, and return how many passed, failed and were skipped."""
    version = tuple(int(part) for part in torch.split("."))
    left_out = [test for limit in LIMITS if version < limit.before for test in limit.tests]
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", *(f"--deselect={test}" for test in left_out)]
    done = run([python, "-m", "pytest", *options, *CORE])
    last = (done.stdout.strip().splitlines() or [""])[-1]
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last)
    found = {word.rstrip("s") if word.startswith("error") else word: int(count) for count, word in counts}
    failed = re.findall(r"^(?:FAILED|ERROR) (.{1,300})", done.stdout, re.MULTILINE)
    return {**found, "failures": failed} if counts else {"error": (done.stdout + done.stderr)[-300:]}


def export(python: str) -> str:
    """Return ``ok`` where `bnfold doctor` finds all well: fold, torch.export, .pt2, ONNX and ONNX Runtime."""
    done = run([python, "-m", "bnfold", "doctor", "--json"])
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return done.stderr[-300:] or "no answer"
    wrong = [f"{check['name']}: {check['detail']}" for check in found["checks"] if not check["works"]]
    return "; ".join(wrong) or "ok"


def demo(python: str, folder: Path) -> str:
    """Return ``ok`` where the demo ends as `make demo` should: folded, proven, written."""
    trained = run([python, "examples/seed_network.py", str(folder / "model.pt")])
    if trained.returncode != 0:
        return trained.stderr[-300:]
    options = ["--code", "examples/seed_network.py", "--report", str(folder / "report.html")]
    done = run([python, "cli.py", "fold", str(folder / "model.pt"), *options])
    written = all((folder / name).exists() for name in ("model.folded.onnx", "model.folded.pt2", "report.html"))
    return "ok" if done.returncode == 0 and written else f"exit {done.returncode}: {done.stderr[-300:]}"


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


if __name__ == "__main__":
    main()
