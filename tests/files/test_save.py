"""Writing: whole or not at all, several together or none, and never over something that was not meant."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnfold.errors import BnfoldError, FileAccessError, UsageError
from bnfold.files import save, staging
from bnfold.files.save import Output, Sidecar, check_targets, write_outputs

needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_what_is_written_is_what_was_given_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    written = write_outputs([Output(tmp_path / "a.bin", b"abc"), Output(tmp_path / "b", b"")], inputs=[], force=False)
    assert names(tmp_path) == {"a.bin", "b"}
    assert (tmp_path / "a.bin").read_bytes() == b"abc"
    assert [(one.path, one.sha256, one.size) for one in written] == [
        (tmp_path / "a.bin", hashlib.sha256(b"abc").hexdigest(), 3),
        (tmp_path / "b", hashlib.sha256(b"").hexdigest(), 0),
    ]


def test_no_outputs_are_no_work() -> None:
    assert write_outputs([], inputs=[], force=False) == []


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_mode_of_the_umask_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_outputs([Output(path, b"1")], inputs=[], force=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    write_outputs([Output(path, b"2")], inputs=[], force=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert path.read_bytes() == b"2"


def test_the_check_sees_the_file_under_its_own_name_beside_its_sidecar(tmp_path: Path) -> None:
    seen: list[tuple[str, bytes, bytes]] = []

    def check(path: Path) -> None:
        assert not (tmp_path / "model.onnx").exists()
        seen.append((path.name, path.read_bytes(), (path.parent / "model.onnx.data").read_bytes()))

    output = Output(tmp_path / "model.onnx", b"graph", check, (Sidecar("model.onnx.data", b"weights"),))
    written = write_outputs([output], inputs=[], force=False)
    assert seen == [("model.onnx", b"graph", b"weights")]
    assert [one.path.name for one in written] == ["model.onnx", "model.onnx.data"]
    assert names(tmp_path) == {"model.onnx", "model.onnx.data"}


def test_a_sidecar_is_in_place_before_the_file_that_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    place = save._place
    monkeypatch.setattr(save, "_place", lambda file, force: (order.append(file.target.name), place(file, force=force)))
    outputs = [Output(tmp_path / "m", b"", None, (Sidecar("m.data", b""),)), Output(tmp_path / "report", b"")]
    write_outputs(outputs, inputs=[], force=False)
    assert order == ["m.data", "m", "report"]


def test_a_failed_check_leaves_nothing(tmp_path: Path) -> None:
    def check(_path: Path) -> None:
        raise ValueError("not a model")

    with pytest.raises(FileAccessError, match=r"b\.onnx was not written: it does not load again \(.*not a model"):
        write_outputs([Output(tmp_path / "a", b"1"), Output(tmp_path / "b.onnx", b"2", check)], inputs=[], force=False)
    assert names(tmp_path) == set()


def test_an_existing_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(FileAccessError, match=r"exists already.*--force"):
        write_outputs([Output(tmp_path / "b", b"1"), Output(path, b"new")], inputs=[], force=False)
    assert names(tmp_path) == {"a"}
    assert path.read_bytes() == b"old"
    write_outputs([Output(path, b"new")], inputs=[], force=True)
    assert path.read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_not_replaced_without_force(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    outputs = [Output(first, b"1"), Output(second, b"2", lambda _path: second.write_bytes(b"another run's") and None)]
    with pytest.raises(FileAccessError, match="created in the meantime"):
        write_outputs(outputs, inputs=[], force=False)
    assert second.read_bytes() == b"another run's"
    assert names(tmp_path) == {"second"}, "the output before it is taken back"


@pytest.mark.parametrize("how", ["itself", "hard link", "symbolic link", "relative"])
def test_the_input_is_never_the_output(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "model.pt", tmp_path / "out.pt"
    source.write_bytes(b"model")
    if how == "hard link":
        target.hardlink_to(source)
    elif how == "symbolic link":
        target.symlink_to(source)
    else:
        target = source
    if how == "relative":
        monkeypatch.chdir(tmp_path)
        target = Path("./model.pt")
    with pytest.raises(UsageError, match="is the input itself"):
        write_outputs([Output(target, b"x")], inputs=[source], force=True)
    assert source.read_bytes() == b"model"


def test_a_sidecar_is_never_the_input(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx.data"
    source.write_bytes(b"model")
    with pytest.raises(UsageError, match="is the input itself"):
        write_outputs(
            [Output(tmp_path / "m.onnx", b"", None, (Sidecar(source.name, b""),))], inputs=[source], force=True
        )


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"old")
    for twin in (tmp_path / "a", tmp_path / "link", tmp_path / ".." / tmp_path.name / "a"):
        with pytest.raises(UsageError, match="are the same file"):
            write_outputs([Output(tmp_path / "a", b"1"), Output(twin, b"2")], inputs=[], force=True)


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_outputs([Output(link, b"new")], inputs=[], force=True)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert names(tmp_path / "elsewhere") == {"real"}


@pytest.mark.parametrize("target", ["folder", "pipe", "/dev/null", "gone/a", "dangling", "n" * 300, "a\0b"])
def test_only_a_regular_file_in_a_folder_that_is_there_is_a_target(target: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    with pytest.raises(FileAccessError) as caught:
        write_outputs([Output(tmp_path / "good", b"1"), Output(tmp_path / target, b"2")], inputs=[], force=True)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    assert names(tmp_path) == before
    with pytest.raises(FileAccessError):
        check_targets([tmp_path / target], inputs=[], force=True)


def test_a_sidecar_is_named_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a folder"):
        write_outputs([Output(tmp_path / "a", b"", None, (Sidecar("../b", b""),))], inputs=[], force=False)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
@pytest.mark.parametrize("force", [True, False])
def test_a_rename_that_fails_takes_back_those_before_it(
    fails_at: int, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    if force:
        for path in paths[:2]:
            path.write_bytes(b"old " + path.name.encode())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    place, count = save._place, iter(range(10))

    def fail(file: save._File, *, force: bool) -> None:
        if next(count) == fails_at:
            raise OSError(errno.EIO, "Input/output error")
        place(file, force=force)

    monkeypatch.setattr(save, "_place", fail)
    with pytest.raises(FileAccessError, match=r"Input/output error.*Nothing was written"):
        write_outputs([Output(path, b"new") for path in paths], inputs=[], force=force)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_where_hard_links_are_not_known_files_still_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_outputs([Output(tmp_path / "a", b"1")], inputs=[], force=False)
    write_outputs([Output(tmp_path / "a", b"2")], inputs=[], force=True)
    assert (tmp_path / "a").read_bytes() == b"2"
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "fsync", "open"])
def test_each_failure_of_the_system_has_its_words(
    number: int, words: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    real = getattr(os, call)

    def fail(*arguments: object, **options: object) -> object:
        if call == "open" and not str(arguments[0]).endswith("/a"):
            return real(*arguments, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(FileAccessError, match=f"{words}.*existing files are unchanged") as caught:
        write_outputs([Output(tmp_path / "a", b"content")], inputs=[], force=True)
    monkeypatch.undo()
    assert len(str(caught.value)) < 400
    assert number not in {errno.ENOSPC, errno.EDQUOT} or "Free 7 bytes" in caught.value.fix
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"old"


def test_bytes_that_read_back_otherwise_are_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def damage(descriptor: int) -> None:
        sync(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.pwrite(descriptor, b"X", 1)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(FileAccessError, match="does not read back"):
        write_outputs([Output(tmp_path / "a", b"content")], inputs=[], force=False)
    assert names(tmp_path) == set()


def _left_over(folder: Path, pid: int, *files: str) -> Path:
    path = folder / f".bnfold-tmp-{pid}-0123abcd"
    path.mkdir()
    for file in files:
        (path / file).write_bytes(b"half")
    return path


def _dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def test_what_an_interrupted_run_left_is_swept_by_the_next(tmp_path: Path) -> None:
    left = _left_over(tmp_path, _dead_pid(), "model.onnx", "model.onnx.data")
    write_outputs([Output(tmp_path / "a", b"1")], inputs=[], force=False)
    assert not left.exists()
    assert names(tmp_path) == {"a"}


def test_what_a_living_run_is_using_is_not_swept(tmp_path: Path) -> None:
    mine = _left_over(tmp_path, os.getpid(), "x")
    assert staging.sweep(tmp_path) == []
    assert (mine / "x").exists()


def test_a_locked_folder_is_not_swept_whatever_its_name_says(tmp_path: Path) -> None:
    left = _left_over(tmp_path, _dead_pid(), "x")
    lock = staging._locked(left)
    assert staging.sweep(tmp_path) == []
    os.close(lock)
    assert staging.sweep(tmp_path) == [left]


def test_the_sweep_touches_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"1")
    dead = _dead_pid()
    (tmp_path / f".bnfold-tmp-{dead}-0123abce").symlink_to(kept, target_is_directory=True)
    (tmp_path / f".bnfold-tmp-{dead}-0123abcf").write_bytes(b"a file")
    (tmp_path / f".bnfold-tmp-{dead}-xyz").mkdir()
    left = _left_over(tmp_path, dead)
    (left / "link").symlink_to(kept / "file")
    assert staging.sweep(tmp_path) == [left]
    assert (kept / "file").exists()
    assert len(names(tmp_path)) == 4


def test_two_runs_on_one_output_leave_one_of_the_two(tmp_path: Path) -> None:
    def run_another(_path: Path) -> None:
        write_outputs([Output(tmp_path / "a", b"inner" * 1000)], inputs=[], force=True)

    write_outputs([Output(tmp_path / "a", b"outer" * 1000, run_another)], inputs=[], force=True)
    assert (tmp_path / "a").read_bytes() == b"outer" * 1000
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("when", ["write", "check"])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def interrupt(*_arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)

    if when == "write":
        monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_outputs([Output(tmp_path / "a", b"new", interrupt if when == "check" else None)], inputs=[], force=True)
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"old"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_files_are_renamed_waits_until_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = save._place

    def interrupt(file: save._File, *, force: bool) -> None:
        signal.raise_signal(signal.SIGINT)
        place(file, force=force)

    monkeypatch.setattr(save, "_place", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_outputs([Output(tmp_path / name, b"new") for name in "abc"], inputs=[], force=True)
    assert names(tmp_path) == {"a", "b", "c"}


def test_a_handler_of_the_callers_own_is_called_and_the_write_does_not_claim_success(tmp_path: Path) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: called.append(number))
    try:
        stop = Output(tmp_path / "a", b"1", lambda _path: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            write_outputs([stop], inputs=[], force=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [signal.SIGTERM]
    assert names(tmp_path) == set()


def _as_nobody(folder: Path, body: str) -> str:
    """Run ``body`` as a user who owns nothing, and return what it prints."""
    root = Path(__file__).resolve().parents[2]
    script = f"import os, sys; sys.path.insert(0, {str(root)!r})\n"
    script += "from pathlib import Path\nfrom bnfold.errors import BnfoldError\n"
    script += "from bnfold.files.save import *\nfrom bnfold.files.kinds import recognise\n"
    script += f"os.chdir({str(folder)!r})\nos.setuid(65534)\ntry:\n    {body}\n"
    script += "except BnfoldError as error:\n    print(error.exit_code, error)\n"
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can look into; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@needs_root
def test_a_folder_without_permission_is_named(open_folder: Path) -> None:
    (open_folder / "a").write_bytes(b"old")
    said = _as_nobody(open_folder, "write_outputs([Output(Path('a'), b'new')], inputs=[], force=True)")
    assert said.startswith("5 There is no permission to write")
    assert (open_folder / "a").read_bytes() == b"old"
    assert names(open_folder) == {"a"}


@needs_root
def test_an_input_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"model")
    (tmp_path / "a").chmod(0)
    assert "5 a may not be read" in _as_nobody(tmp_path, "recognise('a')")


def test_errors_are_bnfolds_own(tmp_path: Path) -> None:
    with pytest.raises(BnfoldError) as caught:
        write_outputs([Output(tmp_path, b"")], inputs=[], force=True)
    assert caught.value.exit_code == 5
