"""The manifest: every option of the fold is a column, and what is wrong is told with its line and column."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from bnfold.batch.columns import columns
from bnfold.batch.job import digest
from bnfold.batch.manifest import read_manifest
from bnfold.cli.commands import batch, fold
from bnfold.errors import FileAccessError, UsageError

WORDS = {"quiet", "verbose", "no_color"}
VALUES = {"input_shape": "2,3,8,8", "seed": "7", "opset": "20", "dynamic": "batch,size"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "models.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "models.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def options_of(arguments: tuple[str, ...]) -> dict[str, object]:
    """What click makes of a job's arguments."""
    return fold.make_context("fold", list(arguments)).params


def test_every_option_of_fold_but_those_about_its_words_is_a_column_and_an_option_of_batch() -> None:
    named = {option.name for option in fold.params if isinstance(option, click.Option)}
    assert {column.option.name for column in columns().values()} == named - WORDS
    of_batch = {option.name for option in batch.params}
    assert named - {"outputs", "reports"} <= of_batch
    assert {"input_shape", "model", "code", "keep", "merge", "strict", "output", "report"} <= set(columns())


@pytest.mark.parametrize("name", [name for name in columns() if name not in ("output", "report", "model")])
def test_a_value_in_a_column_is_the_option_on_the_command_line(name: str, folder: Path) -> None:
    column = columns()[name]
    kind = column.option.type
    value = "true" if column.option.is_flag else VALUES.get(name, "7" if isinstance(kind, click.IntRange) else "a")
    (job,) = read_manifest(jsonl(folder, {"source": "a.pt", name: value}), folder / "out")
    got = options_of(job.arguments)[str(column.option.name)]
    if column.option.is_flag:
        expected: object = True
    else:
        seen = str(folder / value) if column.names_files else value
        expected = fold.make_context("fold", ["m", f"{column.flag}={seen}"]).params[str(column.option.name)]
    assert got == expected
    (without,) = read_manifest(jsonl(folder, {"source": "a.pt"}), folder / "out")
    assert name == "force" or options_of(without.arguments)[str(column.option.name)] != got
    assert name == "force" or digest(job)[1] != digest(without)[1]


def test_csv_and_jsonl_say_the_same(folder: Path) -> None:
    rows = csv(
        folder,
        "name,source,code,model,input_shape,keep,merge,strict,output,timeout,memory",
        'one,sub/a.pt,net.py;other.py,net.py:make,"1,3,8,8;1,4",bn1;bn2,yes,,a.onnx,2m,3GiB',
        "",
        "two,,,timm.models:resnet18,,,,,,,",
    )
    first, second = read_manifest(rows, folder / "out")
    data = jsonl(
        folder,
        {
            "name": "one",
            "source": "sub/a.pt",
            "code": ["net.py", "other.py"],
            "model": "net.py:make",
            "input_shape": [[1, 3, 8, 8], "1,4"],
            "keep": ["bn1", "bn2"],
            "merge": True,
            "strict": False,
            "output": "a.onnx",
            "timeout": 120,
            "memory": "3GiB",
        },
        {"name": "two", "model": "timm.models:resnet18"},
    )
    assert read_manifest(data, folder / "out") == [first, second]
    options = options_of(first.arguments)
    assert options["model"] == str(folder / "sub/a.pt")
    assert options["spec"] == f"{folder / 'net.py'}:make"
    assert options["shapes"] == ((1, 3, 8, 8), (1, 4))
    assert options["outputs"] == (folder / "out/models/one/a.onnx",)
    assert (options["merge"], options["strict"], options["keep"]) == (True, False, ("bn1", "bn2"))
    assert (first.seconds, first.memory) == (120.0, 3 << 30)
    assert first.reads == tuple(str(folder / name) for name in ("sub/a.pt", "net.py", "other.py"))
    other = options_of(second.arguments)
    assert (other["model"], other["spec"], second.source) == ("timm.models:resnet18", None, None)
    assert [path.name for path in other["outputs"]] == ["resnet18.folded.onnx", "resnet18.folded.pt2"]  # type: ignore[attr-defined]


def test_a_folder_stands_for_the_models_in_it(folder: Path) -> None:
    for name in ("a.pt", "sub/b.onnx", "sub/c.txt", "d.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    jobs = read_manifest(folder, folder / "out", defaults={"merge": ["--merge"]})
    assert [job.name for job in jobs] == ["a.pt", "d.safetensors", "sub/b.onnx"]
    assert len({job.folder for job in jobs}) == 3
    assert all("--merge" in job.arguments for job in jobs)
    assert [path.suffix for path in options_of(jobs[2].arguments)["outputs"]] == [".onnx"]  # type: ignore[attr-defined]


def test_a_default_gives_way_to_what_a_row_says_false_included(folder: Path) -> None:
    rows = csv(folder, "source,merge,input_shape", "a.pt,,", 'b.pt,no,"2,1,4,4"')
    defaults = {"merge": ["--merge"], "input_shape": ["1,3,8,8"]}
    first, second = (options_of(job.arguments) for job in read_manifest(rows, folder / "out", defaults=defaults))
    assert (first["merge"], first["shapes"]) == (True, ((1, 3, 8, 8),))
    assert (second["merge"], second["shapes"]) == (False, ((2, 1, 4, 4),))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["source,input_shape", 'a.pt,"1,3,8"', 'b.pt,"1,x"'], ["line 3, column input_shape: '1,x' is not a shape"]),
        (["source,imput_shape", "a.pt,1"], ["line 1, column imput_shape: There is no such column; is it input_shape?"]),
        (["source,merge", "a.pt,perhaps"], ["line 2, column merge: 'perhaps' is neither true nor false"]),
        (["source,seed", "a.pt,1;2"], ["line 2, column seed: '1;2' is not a valid"]),
        (["source,seed", "a.pt,-1"], ["line 2, column seed: -1 is not in"]),
        (["source,timeout", "a.pt,soon"], ["line 2, column timeout: 'soon' is no time"]),
        (["source,memory", "a.pt,much"], ["line 2, column memory: 'much' is no size"]),
        (["name,source", "a,", "b,b.pt"], ["line 2, column source: It is empty"]),
        (["name,source", "a,a.pt", "a,b.pt"], ["line 3, column name: 'a' is the name of line 2 too"]),
        (["source,merge,merge", "a.pt,,"], ["line 1, column merge: It stands there twice"]),
        (["source", "a.pt,extra"], ["line 2: It has 2 cells, and there are 1 columns"]),
        (["source,code", '"a.pt,b'], ["line 2: It is no CSV"]),
        (["source,seed,merge", '"a\n.pt",0,', "b.pt,x,", "c.pt,0,?"], ["line 4, column seed", "line 5, column merge"]),
    ],
)
def test_a_bad_row_is_told_with_its_line_and_column(lines: list[str], told: list[str], folder: Path) -> None:
    with pytest.raises(UsageError) as error:
        read_manifest(csv(folder, *lines), folder / "out")
    for words in told:
        assert f"models.csv, {words}" in str(error.value)
    assert error.value.fix == "Correct the manifest; nothing was started."


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"source": ', "line 2, column 12: It is no JSON"),
        ("[1]", "line 2: It is no JSON object"),
        ('{"sauce": "a.pt"}', "line 2, column sauce: There is no such column; is it source?"),
        ('{"source": "b.pt", "seed": [1, 2]}', "line 2, column seed: 2 values were given, and --seed takes one"),
    ],
)
def test_a_bad_object_is_told_with_its_line(row: str, told: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"models\.jsonl, ") as error:
        read_manifest(jsonl(folder, {"source": "a.pt"}, row), folder / "out")
    assert told in str(error.value)


def test_many_bad_rows_are_not_all_told(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"line 11, .* And 20 more\."):
        read_manifest(csv(folder, "source,seed", *["a.pt,x"] * 30), folder / "out")


def test_what_is_no_manifest_is_told(folder: Path) -> None:
    with pytest.raises(FileAccessError, match="cannot be read: No such file"):
        read_manifest(folder / "none.csv", folder / "out")
    with pytest.raises(UsageError, match="There is no model in"):
        read_manifest(folder, folder / "out")
    (folder / "models.txt").write_text("a.pt")
    with pytest.raises(UsageError, match="names no format"):
        read_manifest(folder / "models.txt", folder / "out")
    (folder / "models.csv").write_bytes(b"source\n\xff\n")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_manifest(folder / "models.csv", folder / "out")


def test_the_key_is_of_content_and_not_of_places(folder: Path) -> None:
    rows = {"name": "a", "source": "a.pt", "code": "net.py"}
    (folder / "a.pt").write_bytes(b"weights")
    (folder / "net.py").write_text("code")
    other = folder.parent / "there"
    folder_job = read_manifest(jsonl(folder, rows), folder / "out")[0]
    first = digest(folder_job)
    folder.rename(other)
    assert digest(folder_job)[0] is None
    moved = read_manifest(other / "models.jsonl", other / "results")[0]
    assert digest(moved) == first
    (other / "net.py").write_text("other code")
    assert digest(moved)[1] != first[1]
    (other / "net.py").write_text("code")
    (other / "a.pt").write_bytes(b"Weights")
    assert digest(moved)[0] != first[0]
    assert digest(moved)[1] != first[1]
