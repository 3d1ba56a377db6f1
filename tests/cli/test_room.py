"""What a fold needs is known before it starts, and said where there is less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import bnfold
from bnfold.cli import room
from bnfold.cli.room import GIB, OnnxWork, Work, most_alive
from tests.cli.conftest import CODE, Run


def test_values_are_counted_until_their_last_reader_has_run() -> None:
    graph = torch.fx.Graph()
    first = graph.placeholder("x")
    second = graph.call_function(torch.relu, (first,))
    third = graph.call_function(torch.relu, (second,))
    last = graph.call_function(torch.add, (third, first))
    sizes = {first: 1, second: 10, third: 10, last: 5}
    assert most_alive(sizes, dict.fromkeys(sizes, 0)) == 21  # x, which the sum reads, and two of the others
    assert most_alive(sizes, {first: 0, second: 0, third: 7, last: 0}) == 28


def test_the_work_of_a_model_grows_with_what_is_asked() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.randn(2, 3, 16, 16)
    captured = bnfold.fold(model, x).captured
    work = Work.of(model, {".safetensors"}, proof=True)
    assert work.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert work.layer == 8 * 8 * 3 * 9
    known = work.with_values(captured, (x,))
    image = 16 * 16
    assert known.batch == 2
    assert known.alive == 8 * max(
        3 * image + 8 * image + 9 * 3 * image, 16 * image
    )  # the convolution, with its columns
    assert known.total >= 4 * (3 + 3 * 8) * image
    assert known.bytes_needed - work.bytes_needed == max(3 * known.alive, known.total)
    large = replace(work, weights=GIB)
    assert large.bytes_needed - room.BASE == pytest.approx(2 * GIB, rel=1e-3)
    assert replace(large, kinds=frozenset({".onnx"})).bytes_needed == room.BASE + 3 * GIB
    assert replace(large, kinds=frozenset({".onnx"}), proof=False).bytes_needed == room.BASE + 2 * GIB


def test_an_onnx_file_needs_more_where_its_weights_lie_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, apart = OnnxWork(4 * GIB), OnnxWork(4 * GIB, apart=True)
    assert inside.bytes_needed == room.BASE + 25 * GIB
    assert apart.bytes_needed == room.BASE + 13 * GIB
    monkeypatch.setattr(room, "machine_memory", lambda: 10 * GIB)
    told = room.sentence_on_room(inside)
    assert told is not None
    assert "--no-verify needs 12." in told
    assert ".safetensors" not in told


def test_a_layer_that_has_no_shape_yet_counts_for_nothing() -> None:
    assert Work.of(nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2)), {".onnx"}, proof=True).weights == 4 * 6


def test_what_does_not_fit_is_said_with_the_options_that_need_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "machine_memory", lambda: 10 * GIB)
    work = Work(10 * GIB, layer=GIB, alive=3 * GIB, total=2 * GIB, batch=8)
    told = room.sentence_on_room(work)
    assert told is not None
    assert told.startswith(f"This fold needs about {work.bytes_needed / GIB:.1f} GiB of memory, and there are 10.")
    for option, other in (
        ("a smaller batch in --input-shape", replace(work, batch=1)),
        ("-o NAME.safetensors alone", replace(work, kinds=frozenset({".safetensors"}))),
        ("--no-verify", replace(work, proof=False)),
    ):
        assert f"{option} needs {other.bytes_needed / GIB:.1f} GiB" in told
        assert other.bytes_needed < work.bytes_needed
    assert room.sentence_on_room(Work(GIB)) is None


def test_a_fold_that_may_not_fit_warns_and_goes_on(run: Run, seed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "machine_memory", lambda: -GIB)
    result = run("fold", seed_file, *CODE, "-o", "m.safetensors")
    assert result.code == 0
    (told,) = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert "of memory, and there are" in told


def test_nothing_is_said_where_there_is_room(run: Run, seed_file: Path) -> None:
    assert "of memory" not in run("fold", seed_file, *CODE, "-o", "m.safetensors").err


@pytest.mark.parametrize(
    ("line", "top", "names", "cached"),
    [
        ("0::/a/b", "", ("memory.max", "memory.current"), "inactive_file"),
        ("4:cpu,memory:/a/b", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_a_group_s_limit_counts_without_the_pages_that_the_system_takes_back(
    line: str, top: str, names: tuple[str, str], cached: str, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.write_text(f"9:pids:/elsewhere\n{line}\n")
    for path, limit, used in (("a/b", "max\n", 5), ("a", "100\n", 60), ("", "70\n", 20)):
        group = tmp_path / "tree" / top / path
        group.mkdir(parents=True, exist_ok=True)
        (group / names[0]).write_text(limit)
        (group / names[1]).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 3\n{cached} 10\n")
    assert [*room.spare_of_groups(tmp_path / "tree", own)] == [50, 60]
    own.write_text(line.replace("/a/b", "/of/the/host") + "\n")
    assert [*room.spare_of_groups(tmp_path / "tree", own)] == [60]
    assert not [*room.spare_of_groups(tmp_path / "tree", tmp_path / "missing")]
