"""``bnfold doctor``: everything is tried, what is too old or broken is said, and nothing is written."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from bnfold.cli import health
from tests.cli.conftest import ROOT, Run


def test_all_is_well_where_the_tests_run(run: Run, tmp_path: Path) -> None:
    result = run("doctor")
    assert result.code == 0, result.out
    assert "Everything that bnfold needs works here." in result.out
    assert "fails" not in result.out
    assert list(tmp_path.iterdir()) == []


def test_json_tells_the_same(run: Run) -> None:
    result = run("doctor", "--json")
    found = json.loads(result.out)
    assert (result.code, found["well"], found["schema"]) == (0, True, 1)
    assert {check["name"]: check["works"] for check in found["checks"]} == dict.fromkeys(
        (name for name, *_ in health._CHECKS), True
    )
    assert {package["name"] for package in found["packages"]} == {*health.PACKAGES, *health.OPTIONAL}


def test_a_version_that_is_too_old_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(health, "_CHECKS", ())
    monkeypatch.setattr(health.metadata, "version", lambda name: "2.5.1" if name == "torch" else version(name))
    result = run("doctor")
    assert result.code == 6
    assert re.search(r"torch +2\.5\.1 +2\.6 or newer +too old", result.out)
    assert "torch: Run `pip install --upgrade torch`." in result.out


def test_what_is_optional_may_be_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_timm(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(health, "_CHECKS", ())
    monkeypatch.setattr(health.metadata, "version", without_timm)
    result = run("doctor")
    assert result.code == 0
    assert "timm: Needed only for models by name. Run `pip install timm`." in result.out


@pytest.mark.parametrize(
    "error", [RuntimeError("an \x1b[31m odd\nerror"), OSError("libcuda.so: cannot open"), SystemError()]
)
def test_whatever_fails_is_a_row_and_what_needs_it_is_not_tried(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(_name: str) -> None:
        raise error

    monkeypatch.setattr(health.importlib, "import_module", broken)
    result = run("doctor")
    assert result.code == 6
    assert "\x1b" not in result.out
    assert type(error).__name__ in result.out
    assert "not tried: it needs torch" in result.out
    assert "Traceback" not in result.out + result.err


def test_a_fold_that_is_wrong_is_noticed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.fold import api

    fold = api.fold

    def wrong(*arguments: object, **options: object) -> object:
        folding = fold(*arguments, **options)  # type: ignore[arg-type]
        next(folding.module.parameters()).data += 1e-3
        return folding

    monkeypatch.setattr(api, "fold", wrong)
    result = run("doctor")
    assert result.code == 6
    assert "the folded network is off by" in result.out


def test_the_versions_it_asks_for_are_those_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+),.*", line).groups() for line in project["dependencies"])  # type: ignore[union-attr]
    assert bounds == health.PACKAGES
