"""The command line where things are missing: a user, a home, packages, memory, room, permissions, time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnfold.cli import main
from tests.cli.conftest import CODE, ROOT, Run

WEIGHTS = ("--no-verify", "-o", "out.safetensors")  # the shortest way through every stage
HIDE = """
import os
from importlib.machinery import PathFinder

hidden = set(os.environ["HIDDEN"].split(","))
find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
"""
NOBODY = 12345  # a user without a name or a home
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes another user"
)


def bnfold(folder: Path, *arguments: object, before: tuple[str, ...] = (), **changes: str) -> tuple[int, str]:
    """Run the command line in a folder; return the exit code and all that it said."""
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "HOME")}
    done = subprocess.run(
        [*before, sys.executable, "-B", str(ROOT / "cli.py"), *map(str, arguments)],
        cwd=folder,
        env=environment | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def open_folder(seed_file: Path) -> Iterator[Path]:
    """A folder with a model that every user can look into; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        shutil.copy(seed_file, name)
        yield Path(name)


def as_nobody() -> tuple[str, ...]:
    """Return what runs a command as a user who owns nothing, but may read Python wherever it is installed."""
    user = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    return ("setpriv", *user, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


@needs_root
def test_a_user_without_a_name_or_a_home_folds_and_verifies_from_a_folder_that_cannot_be_written_to(
    open_folder: Path,
) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chown(elsewhere, NOBODY, NOBODY)
        outputs = [Path(elsewhere) / name for name in ("out.onnx", "out.pt2", "out.safetensors")]
        arguments = ("fold", "model.pt", *CODE, *(f"-o{path}" for path in outputs))
        code, said = bnfold(open_folder, *arguments, before=as_nobody())
        assert code == 0, said
        assert "equivalent in 7 comparisons" in said
        assert "telemetry" not in said
        assert names(Path(elsewhere)) == {path.name for path in outputs}
    assert names(open_folder) == {"model.pt"}


@needs_root
def test_a_folder_that_cannot_be_written_to_is_said_before_any_work(open_folder: Path) -> None:
    code, said = bnfold(open_folder, "fold", "model.pt", *CODE, "-v", before=as_nobody())
    assert code == 5
    assert "There is no permission to write a file in" in said
    assert "fix: Write elsewhere with -o" in said
    assert names(open_folder) == {"model.pt"}


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 200 kB, less than one output needs."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", name]
        if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
            pytest.skip("this needs a file system of its own")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def test_a_full_disk_leaves_what_was_there(run: Run, seed_file: Path, small_disk: Path) -> None:
    output = small_disk / "out.safetensors"
    output.write_bytes(b"old")
    result = run("fold", seed_file, *CODE, "--no-verify", "--force", "-o", output, "--report", small_disk / "r.json")
    assert result.code == 5
    assert "The disk is full: no room for" in result.err
    assert "Free 25" in result.err
    assert names(small_disk) == {"out.safetensors"}
    assert output.read_bytes() == b"old"


def test_a_read_only_disk_is_said_before_any_work(run: Run, seed_file: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    result = run("fold", seed_file, *CODE, "-o", small_disk / "out.pt2")
    assert result.code == 5
    assert "read-only file system" in result.err


@pytest.fixture
def without(seed_file: Path, tmp_path: Path) -> Run:
    """Run the command line where some packages are not installed."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDE)

    def start(*arguments: object) -> tuple[int, str]:
        hidden, *others = arguments
        return bnfold(seed_file.parent, *others, HIDDEN=str(hidden), PYTHONPATH=f"{site}{os.pathsep}{ROOT}")

    return start  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("hidden", "arguments", "says"),
    [
        ("onnxruntime", (), "-o model.pt2` is verified in torch, and --no-verify writes .onnx without proof"),
        ("onnx", (), "Writing .onnx needs the package onnx, which is not installed"),
        ("onnxscript", (), "Run `pip install onnxscript`; `-o model.pt2` needs nothing more"),
        ("safetensors", WEIGHTS, "Writing .safetensors needs the package safetensors"),
        ("torch", (), "bnfold needs the package torch, which is not installed"),
        ("click", (), "Run `pip install click`"),
        ("rich", (), "Run `pip install rich`"),
    ],
)
def test_a_missing_package_is_named_with_what_works_without_it(
    without: Run, hidden: str, arguments: tuple[str, ...], says: str
) -> None:
    code, said = without(hidden, "fold", "model.pt", *CODE, *arguments)  # type: ignore[misc]
    assert code == 6, said
    assert says in said


def test_weights_are_written_without_anything_of_onnx(without: Run, seed_file: Path) -> None:
    code, said = without("onnx,onnxruntime,onnxscript", "fold", "model.pt", *CODE, *WEIGHTS)  # type: ignore[misc]
    assert code == 0, said
    assert seed_file.with_name("out.safetensors").exists()


@pytest.mark.long
def test_a_program_is_verified_in_torch_without_onnx_runtime(without: Run) -> None:
    code, said = without("onnx,onnxruntime,onnxscript", "fold", "model.pt", *CODE, "-o", "o.pt2")  # type: ignore[misc]
    assert code == 0, said
    assert "equivalent in 4 comparisons" in said


@pytest.mark.parametrize(
    ("hidden", "fails", "firsts"),
    [
        ("torch", {"torch", "fold", "torch.export", "writing .pt2", "ONNX export", "ONNX Runtime"}, {"torch": "torch"}),
        pytest.param(
            "onnx,onnxscript",
            {"ONNX export", "ONNX Runtime"},
            {"ONNX export": "onnx"},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "onnxruntime,safetensors",
            {"ONNX Runtime", "writing .safetensors"},
            {"ONNX Runtime": "onnxruntime", "writing .safetensors": "safetensors"},
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_doctor_says_what_fails_without_a_package(
    without: Run, hidden: str, fails: set[str], firsts: dict[str, str]
) -> None:
    code, said = without(hidden, "doctor", "--json")  # type: ignore[misc]
    assert code == 6, said
    found = json.loads(said)
    assert found["well"] is False
    broken = {check["name"]: check for check in found["checks"] if not check["works"]}
    assert fails <= broken.keys() <= fails | {"writing .safetensors"}
    assert next(iter(broken)) in firsts
    for check, package in firsts.items():
        assert f"the package {package}" in broken[check]["detail"]
        assert "not installed" in broken[check]["detail"]
        assert f"Run `pip install {package}`" in broken[check]["fix"]


@needs_root
@pytest.mark.long
def test_the_doctor_is_content_where_only_the_folder_cannot_be_written_to(open_folder: Path) -> None:
    code, said = bnfold(open_folder, "doctor", before=as_nobody())
    assert code == 0, said
    assert "There is no permission to write a file in" in said
    assert "this folder: Write elsewhere with -o" in said
    assert "Everything that bnfold needs works here." in said
    assert names(open_folder) == {"model.pt"}


MEGABYTE = 1 << 20
START = """
import resource, sys
limit = int(sys.argv.pop(1))
sys.modules["tqdm"] = None  # torch starts a thread for it if it is there; CPython waits for ever for one without memory
if limit < 0:  # beyond what the libraries need to be loaded
    import numpy, onnx, onnxruntime, onnxscript, torch, bnfold.export, bnfold.verify
    limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() - limit
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from bnfold.cli import main
sys.exit(main())
"""


def starved(folder: Path, megabytes: int, *arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-B", "-c", START, str(megabytes * MEGABYTE), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_memory_that_runs_out_is_a_sentence_and_old_outputs_stay(seed_file: Path) -> None:
    output = seed_file.with_name("out.safetensors")
    output.write_bytes(b"old")
    code, said = starved(seed_file.parent, 200, "fold", "model.pt", *CODE, *WEIGHTS, "--force")
    assert (code, said.splitlines()[0]) == (6, "error: Memory ran out.")
    assert "Traceback" not in said
    assert output.read_bytes() == b"old"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_an_input_larger_than_memory_is_a_sentence(seed_file: Path) -> None:
    shape = ("--input-shape", "64,1,20000,20000")
    code, said = starved(seed_file.parent, 8000, "fold", "model.pt", *CODE, *shape, "-o", "out.pt2")
    assert code in {2, 6}, said
    assert "memory" in said.lower()
    assert "Traceback" not in said
    assert names(seed_file.parent) == {"model.pt"}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_memory_that_runs_out_anywhere_damages_nothing(seed_file: Path) -> None:
    outputs, codes = ("out.onnx", "out.pt2"), []
    for megabytes in (1, 10, 20, 40, 80, 120, 160, 200, 2000):
        for name in outputs:
            seed_file.with_name(name).write_bytes(b"old")
        command = ("fold", "model.pt", *CODE, "--force", "-q", "-o", outputs[0], "-o", outputs[1])
        code, said = starved(seed_file.parent, -megabytes, *command)
        codes.append(code)
        assert not any(line.startswith("Traceback") for line in said.splitlines()), (megabytes, said)
        if code in {-signal.SIGABRT, -signal.SIGSEGV, 127} or "OpenBLAS error" in said:
            left = names(seed_file.parent) - {"model.pt", *outputs}  # C code of others gave up, not bnfold
            assert all(name.startswith(".bnfold-tmp-") for name in left)
        else:
            # Mostly 6. But torch goes on after some allocations that failed, with half of what it needs, and makes
            # any other error of it, which it may log.
            assert code in {0, 2, 3, 5, 6, 70}, (megabytes, code, said)
            assert code == 0 or "error: " in said, (megabytes, said)
            assert names(seed_file.parent) == {"model.pt", *outputs}
        old = [seed_file.with_name(name).read_bytes() == b"old" for name in outputs]
        assert old == [code != 0] * 2, (megabytes, code)
    assert codes.count(6) > 2, "memory never ran out"
    assert codes[-1] == 0, "the last limit is enough"


@pytest.mark.long
def test_two_runs_on_one_output_leave_that_of_one(seed_file: Path) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "fold", "model.pt", *CODE, *WEIGHTS, "--force", "-q"]
    runs = [subprocess.Popen(command, cwd=seed_file.parent, stderr=subprocess.PIPE) for _ in range(2)]
    said = [run.communicate()[1] for run in runs]
    assert ([run.returncode for run in runs], said) == ([0, 0], [b"", b""])
    assert names(seed_file.parent) == {"model.pt", "out.safetensors"}
    assert main(["verify", str(seed_file), str(seed_file), *CODE, "-q"]) == 0


TOLD = "import sys; from bnfold.cli import ending; print('ready', flush=True); sys.exit(ending.main())"


def interrupted(seed_file: Path, delay: float) -> tuple[int, str]:
    """Fold, and press Ctrl-C after a while; return the exit code and the messages."""
    command = [sys.executable, "-c", TOLD, "fold", "model.pt", *CODE, "--force", "-q"]
    process = subprocess.Popen(
        command,
        cwd=seed_file.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    return process.returncode, said


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_an_interrupt_at_any_stage_leaves_no_trace(seed_file: Path) -> None:
    outputs = [seed_file.with_name(f"model.folded{suffix}") for suffix in (".onnx", ".pt2")]
    begin = time.monotonic()
    assert main(["fold", str(seed_file), *CODE, "-q", *(f"-o{path}" for path in outputs)]) == 0
    length = max(8.0, 2 * (time.monotonic() - begin))
    chance, codes = random.Random(3), []
    for _ in range(30):
        before = [path.read_bytes() for path in outputs]
        code, said = interrupted(seed_file, chance.uniform(0.05, length))
        codes.append(code)
        if code:
            assert code == 130, said
            assert said.strip() == "error: Interrupted. Existing files were not changed."
            assert [path.read_bytes() for path in outputs] == before
        assert names(seed_file.parent) == {"model.pt", *(path.name for path in outputs)}
    assert codes.count(130) > 5, "the interrupts fell beside the work"
