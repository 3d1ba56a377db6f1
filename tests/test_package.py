"""What is shipped: an sdist, a wheel built from it, and an environment in which only the wheel is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import bnfold
from tests.cli.conftest import ROOT

IGNORED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "demo", "*.egg-info")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, into: Path) -> Path:
    """Build with the backend that pyproject.toml names, from the versions that are installed."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(into)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return into / done.stdout.splitlines()[-1]


def run(program: Path, *arguments: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    command = [str(program), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "source", ignore=IGNORED)
    return build("sdist", folder / "source", folder)


@pytest.fixture(scope="module")
def unpacked(sdist: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent / "unpacked", filter="data")
    return next((sdist.parent / "unpacked").iterdir())


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel; it sees the packages of this one, but not its bnfold."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = ("-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed")
    run(Path(sys.executable), *pip, str(wheel), folder=folder)
    where = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder)
    paths = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    Path(where.strip(), "packages.pth").write_text("\n".join(paths) + "\n")
    return python.parent


def shipped() -> set[str]:
    """Return what the package is made of, in the checkout."""
    files = (path for path in (ROOT / "bnfold").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == shipped()
    assert "bnfold/py.typed" in names
    assert any(name.endswith(".j2") for name in names), "the template of the HTML report"
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_sdist_can_be_tested_and_documented(unpacked: Path) -> None:
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    folders = ("bnfold", "tests", "examples", "benchmarks", "docs")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile", "constraints.txt"}
    assert wanted - files == set()


def test_the_metadata_say_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(name).decode().splitlines()
    assert f"Version: {bnfold.__version__}" in lines
    assert "License-Expression: Apache-2.0" in lines
    assert "Requires-Python: >=3.10" in lines
    for minor in (10, 11, 12, 13):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}" in lines


def test_the_installed_package_runs(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import bnfold; print(bnfold.__file__)", folder=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parent)
    assert run(installed / "bnfold", "--version", folder=tmp_path) == f"bnfold {bnfold.__version__}\n"
    assert "bnfold fold model.pt" in run(installed / "bnfold", "--help", folder=tmp_path)
    spec = f"{ROOT / 'examples' / 'seed_network.py'}:Net"
    run(installed / "bnfold", "fold", spec, "-o", "out.safetensors", "--report", "r.html", folder=tmp_path)
    assert "bn1" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_version_is_in_one_place() -> None:
    version = bnfold.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", version)
    assert re.search(r'^dynamic = \["version"\]', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    files = [path for folder in ("bnfold", "docs") for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / name for name in ("cli.py", "CITATION.cff", "Makefile")]
    assert [path.name for path in files if version in path.read_text(encoding="utf-8")] == ["_version.py"]


def test_the_citation_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}, "what the format demands"
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"
    assert "version" not in citation, "it stands in one place"


def test_the_hooks_are_what_make_lint_runs_and_need_no_network() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    entries = {
        hook["entry"].removeprefix(".venv/bin/").replace(" --force-exclude", "") for hook in repositories[0]["hooks"]
    }
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].split("\n\n")[0]
    linted = {line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in recipe.splitlines()[1:]}
    assert entries == linted


@pytest.mark.parametrize("minor", [10, *(pytest.param(minor, marks=pytest.mark.long) for minor in (11, 12, 13))])
def test_each_supported_python_compiles_it(minor: int, tmp_path: Path) -> None:
    """With the interpreter where there is one; ruff and mypy look for what Python 3.10 has not."""
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"there is no Python 3.{minor}")
    places = [str(ROOT / name) for name in ("bnfold", "tests", "examples", "benchmarks", "cli.py")]
    command = [python, "-W", "error", "-m", "compileall", "-q", *places]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def interpreter(minor: int) -> str | None:
    """Return a Python 3.``minor``: on the path, or of pyenv."""
    homes = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
    found = [shutil.which(f"python3.{minor}"), *map(str, homes)]
    for python in filter(None, found):
        told = subprocess.run([python, "--version"], capture_output=True, text=True, check=False).stdout
        if told.startswith(f"Python 3.{minor}."):
            return python
    return None
