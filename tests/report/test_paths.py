"""No folder of the machine stands in a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bnfold.report.details import Details, InputFile
from bnfold.report.document import Document, OutputFile
from bnfold.report.files import as_json, content_for
from tests.report.samples import decision, document


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Document:
    """A document whose model lies in the working folder, and whose output lies elsewhere."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    model = str(tmp_path / "work" / "nets" / "model.pt")
    return document(
        model=model,
        candidate=str(tmp_path / "out" / "other.onnx"),
        inputs=("2x3", f"from {tmp_path / 'work' / 'real.npz'}"),
        batchnorms=(decision(detail=f"bn1 stays, at {tmp_path}/work/net.py:3."),),
        notes=(f"{model}: is large.", f"{tmp_path}/out/model.onnx: is new."),
        outputs=(OutputFile(str(tmp_path / "out" / "model.onnx"), "ab" * 32, 3),),
        details=Details(0, (InputFile(model, "cd" * 32, 4),), remarks=(f"{model} was not run.",)),
    )


@pytest.mark.parametrize("suffix", [".html", ".md", ".xml"])
def test_a_report_for_people_has_no_folder_of_the_machine(suffix: str, told: Document, tmp_path: Path) -> None:
    text = content_for(Path(f"report{suffix}"), told).decode()
    assert str(tmp_path) not in text
    assert "nets/model.pt" in text.replace("<wbr>", "")


def test_json_is_relative_to_the_working_folder_and_still_names_files_elsewhere(told: Document, tmp_path: Path) -> None:
    data = json.loads(as_json(told))
    assert data["model"] == "nets/model.pt"
    assert data["inputs"]["how"] == "from real.npz"
    assert data["outputs"][0]["path"] == str(tmp_path / "out" / "model.onnx")
    assert data["notes"][0] == "nets/model.pt: is large."


def test_a_spec_and_a_relative_path_stay_as_they_were_written(told: Document) -> None:
    for name in ("timm:densenet121", "../model.pt", "model.pt"):
        assert json.loads(as_json(told.with_results(model=name)))["model"] == name
        assert name in content_for(Path("report.md"), told.with_results(model=name)).decode()
