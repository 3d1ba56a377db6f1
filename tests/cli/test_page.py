"""``--report page.html`` of each command."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.cli.conftest import CODE, Run


def test_fold_writes_a_page_with_the_graph_the_proof_and_the_files(run: Run, seed_file: Path) -> None:
    result = run("fold", "model.pt", *CODE, "-o", "m.pt2", "--report", "r.html", "--seed", "3")
    assert result.code == 0, result.err
    page = Path("r.html").read_text(encoding="utf-8")
    assert "equivalent in" in page
    assert "↑ into conv1 through pool" in page
    assert "took bn1" in page
    assert hashlib.sha256(seed_file.read_bytes()).hexdigest() in page
    assert hashlib.sha256(Path("m.pt2").read_bytes()).hexdigest() in page
    assert "<dt>seed</dt><dd>3</dd>" in page
    assert "multiply-accumulates" in page
    assert "error, floors" in page


def test_without_proof_no_error_is_measured(run: Run, seed_file: Path) -> None:
    assert run("fold", "model.pt", *CODE, "-o", "m.safetensors", "--no-verify", "--report", "r.html").code == 0
    page = Path("r.html").read_text(encoding="utf-8")
    assert "not verified" in page
    assert "error, floors" not in page


def test_a_strict_run_that_stops_writes_its_page(run: Run, negative_file: Path) -> None:
    assert run("fold", "negative.pt", *CODE, "--strict", "--report", "r.html").code == 4
    page = Path("r.html").read_text(encoding="utf-8")
    assert "not everything folded" in page
    assert "explicit affine: negative-scale" in page


@pytest.mark.usefixtures("seed_file")
def test_explain_writes_a_page_with_both_graphs(run: Run) -> None:
    assert run("explain", "model.pt", *CODE, "--report", "r.html").code == 0
    page = Path("r.html").read_text(encoding="utf-8")
    assert "Graph, before and after" in page
    assert "took bn1" in page


@pytest.mark.usefixtures("seed_file")
def test_verify_writes_a_page_with_its_comparisons(run: Run) -> None:
    result = run("verify", "model.pt", "model.pt", *CODE, "--report", "r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    assert result.code == 0, result.err
    assert "<h2>Proof</h2>" in page
    assert "<h2>BatchNorms</h2>" not in page


@pytest.mark.usefixtures("seed_file")
def test_bench_writes_a_page_with_its_times(run: Run) -> None:
    result = run("bench", "model.pt", *CODE, "--seconds", "0.2", "--target", "eager", "--report", "r.html")
    assert result.code == 0, result.err
    page = Path("r.html").read_text(encoding="utf-8")
    assert "<h2>Latency</h2>" in page
    assert "torch eager" in page


def test_merges_are_told_and_marked_in_the_graph(run: Run) -> None:
    Path("net.py").write_text(
        "from tests.networks import NETWORKS\n\ndef make():\n    return NETWORKS['repvgg']()[0]\n", encoding="utf-8"
    )
    result = run("explain", "net.py:make", "--merge", "--input-shape", "2,8,9,9", "--report", "r.html")
    assert result.code == 0, result.err
    page = Path("r.html").read_text(encoding="utf-8")
    assert "Merged convolutions" in page
    assert "merged with conv1" in page
