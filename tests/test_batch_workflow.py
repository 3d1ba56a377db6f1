"""The example of a nightly workflow: it parses, its command has options that exist, and its steps hang together."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from bnfold.cli.commands import bnfold

WORKFLOW = Path(__file__).resolve().parent.parent / "examples" / "github-actions-batch.yml"


def steps() -> list[dict[str, Any]]:
    data = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert set(data[True]) == {"schedule", "workflow_dispatch"}  # yaml reads a bare `on` as true
    return list(data["jobs"]["batch"]["steps"])


def test_the_workflow_parses_and_each_step_does_one_thing() -> None:
    for step in steps():
        assert ("run" in step) != ("uses" in step)
        assert "${{" not in step.get("run", "")  # nothing that GitHub would put into a command
        assert "uses" not in step or step["uses"].count("@v") == 1


def test_its_command_parses_and_the_folder_that_it_writes_is_the_one_that_is_kept() -> None:
    (command,) = [step["run"] for step in steps() if "bnfold batch" in step.get("run", "")]
    program, name, *arguments = shlex.split(command)
    assert program == "bnfold"
    options = bnfold.commands[name].make_context(name, arguments).params
    assert options["timeout"] == 900.0
    cache, upload = (next(s for s in steps() if kind in s.get("uses", "")) for kind in ("cache", "upload"))
    assert cache["with"]["path"] == str(options["output"])
    assert all(path.startswith(f"{options['output']}/") for path in upload["with"]["path"].split())
    (tell,) = [step for step in steps() if step.get("name") == "Tell"]
    assert (tell["if"], options["reports"][0] in tell["run"]) == ("always()", True)
