"""A release could be pushed: its workflow asks for little and pins what it uses, and its version has a changelog."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import bnfold
from bnfold.errors import BnfoldError
from tests.test_package import sdist, unpacked, wheel

__all__ = ["sdist", "unpacked", "wheel"]  # fixtures

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_read_only_and_pin_what_they_use(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}
    for line in path.read_text(encoding="utf-8").splitlines():
        if "uses:" in line:
            assert re.search(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line
    for job in jobs(path).values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "nothing is put into a command"
            assert "secrets" not in str(step), "a token that is kept can be stolen"


def test_only_what_publishes_may_say_who_it_is_and_a_person_lets_it() -> None:
    asking = {
        name: job for name, job in jobs(ROOT / ".github" / "workflows" / "release.yml").items() if "permissions" in job
    }
    assert set(asking) == {"publish"}
    assert asking["publish"]["environment"] == "release"
    assert asking["publish"]["permissions"]["id-token"] == "write"
    assert not any("run" in step for step in asking["publish"]["steps"]), "it builds nothing itself"


@pytest.mark.parametrize(("tag", "code"), [(f"v{bnfold.__version__}", 0), ("v9.9.9", 1)])
def test_the_release_refuses_a_tag_that_is_not_the_version(tag: str, code: int, tmp_path: Path) -> None:
    steps = jobs(ROOT / ".github" / "workflows" / "release.yml")["build"]["steps"]
    (step,) = [step for step in steps if step.get("name") == "The tag is the version"]
    program = tmp_path / "python"
    program.symlink_to(sys.executable)
    environment = os.environ | {"GITHUB_REF_NAME": tag, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", step["run"]], cwd=ROOT, env=environment, check=False)
    assert done.returncode == code


def test_the_newest_section_of_the_changelog_is_the_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == bnfold.__version__


def test_what_is_promised_of_the_api_names_what_there_is() -> None:
    text = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(bnfold\.[a-z_.]+[a-z_])`", text):
        if name != "bnfold.lock":
            group = name == "bnfold.witnesses"
            assert group or hasattr(bnfold, name.split(".")[1]) or importlib.util.find_spec(name), name
    assert issubclass(bnfold.UsageError, BnfoldError)


@pytest.mark.skipif(importlib.util.find_spec("twine") is None, reason="twine is not installed")
def test_twine_finds_nothing_wrong(sdist: Path, wheel: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
