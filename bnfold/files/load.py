"""Load a model from a file that may come from anywhere, or from a name in the user's own code.

The way of a file: what kind it is by its bytes; whether its archive can be read in one way only and its checksums hold;
what its pickle would build, read without obeying it; then ``torch.load(weights_only=True)`` with exactly the classes
that it asks for and may have; then a look at what came out. ``trust`` leaves out everything but the first two.
"""

from __future__ import annotations

import gc
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from bnfold.errors import BnfoldError, UsageError, first_line
from bnfold.files.archive import BadArchiveError, Entry, check_archive, check_contents, read_entry
from bnfold.files.code import classes_in, looks_like_spec, module_of_spec, resolve_spec, run_file
from bnfold.files.kinds import Kind, open_regular, refusal, sniff
from bnfold.files.loaded import NEEDS_MODEL, LoadedModel, Request
from bnfold.files.programs import load_program, load_torchscript
from bnfold.printable import shown, shown_path

if TYPE_CHECKING:
    from torch import nn


__all__ = ["LoadedModel", "load_model", "looks_like_spec", "resolve_spec"]


_SMALL_RECORDS = {
    "byteorder": re.compile(rb"little|big"),
    "version": re.compile(rb"[0-9]{1,4}\n?"),
    ".format_version": re.compile(rb"[0-9]{1,4}"),
    ".storage_alignment": re.compile(rb"[0-9]{1,7}"),
}


def load_model(
    source: str, *, code: Sequence[Path] = (), model: str | None = None, key: str | None = None, trust: bool = False
) -> LoadedModel:
    """Load the model that ``source`` names.

    Args:
        source: a file's path, or a SPEC: ``package.module:factory`` or ``file.py:factory``.
        code: Python files of the user's that define the classes of a pickled model. They are run.
        model: a SPEC for the module that a file of weights belongs to.
        key: which entry of a checkpoint dict holds the weights, dots between levels.
        trust: unpickle anything, which runs whatever code the file holds.

    Raises:
        RefusedFileError: the file is of no use, damaged, or asks for what it may not have.
        FileAccessError: there is no such file, or it may not be read.
        UsageError: ``code``, ``model`` or ``key`` do not fit, or the code they name fails.
    """
    if looks_like_spec(source):
        if model is not None or key is not None:
            raise UsageError(f"{shown_path(source)} already names a model.", fix="Leave --model and --key out.")
        return LoadedModel(resolve_spec(source), "spec", source.rpartition(":")[2].rpartition(".")[2])
    with open_regular(source) as file:
        kind = sniff(file)
        loader = _LOADERS.get(kind)
        if loader is None:
            raise refusal(kind, source)
        request = Request(source, tuple(code), model, key, trust)
        try:
            return loader(file, request)
        except BadArchiveError as error:
            raise request.refused(error, "Download or copy it again.") from None


def _load_torch(file: BinaryIO, request: Request) -> LoadedModel:
    """Load what torch.save wrote: a module, a state_dict, or a checkpoint."""
    from torch import nn

    from bnfold.files.state_dict import module_with_state

    entries = check_archive(file)
    check_contents(entries)
    _check_that_torch_agrees(file, entries)
    _check_small_records(entries)
    modules = [run_file(path) for path in request.code]
    target = None if request.spec is None else resolve_spec(request.spec)
    if request.trust:
        loaded = _unpickle_anything(file, entries, request, _classes(modules, request, target))
    else:
        loaded = _unpickle_safely(file, entries, request, _classes(modules, request, target))
    if isinstance(loaded, nn.Module):
        return request.loaded(_unwrapped(loaded, request), "pickled module")
    return module_with_state(loaded, target, request)


def _check_that_torch_agrees(file: BinaryIO, entries: dict[str, Entry]) -> None:
    """Check that torch's own reader finds the same entries in the same places as the one that checked them."""
    import torch

    file.seek(0)
    try:
        reader: Any = torch._C.PyTorchFileReader(file)
        names = set(reader.get_all_records())
        same = names == entries.keys() and all(reader.get_record_offset(n) == entries[n].data for n in names)
    except RuntimeError as error:
        raise BadArchiveError(f"is an archive that torch cannot read: {first_line(error, typed=True)}") from None
    if not same:
        raise BadArchiveError("is an archive that can be read in two ways")


def _check_small_records(entries: dict[str, Entry]) -> None:
    """Check the records beside the pickle that torch reads as a word or a number."""
    for name, form in _SMALL_RECORDS.items():
        if name in entries:
            content = read_entry(entries[name]) if entries[name].plain < 20 else b"?"
            if not form.fullmatch(content):
                raise BadArchiveError(f"is damaged: its record `{name}` is {shown(content)}")


def _classes(modules: list[ModuleType], request: Request, target: nn.Module | None) -> list[type[nn.Module]]:
    """Return the module classes that the user named: in --code and --model files, and in the model made."""
    named = [*modules, *([module_of_spec(request.spec)] if request.spec is not None else [])]
    used = [] if target is None else [type(part) for part in target.modules()]
    return list(dict.fromkeys(classes_in(named) + used))


def _unpickle_safely(
    file: BinaryIO, entries: dict[str, Entry], request: Request, classes: list[type[nn.Module]]
) -> Any:
    import torch

    from bnfold.files.allowed import Allowed, only_these_globals
    from bnfold.files.pickles import BadPickleError, read_pickle
    from bnfold.files.safety import UnsafeModelError, check_content

    allowed = Allowed(classes, has_code=bool(request.code or request.spec))
    remake = "Ask its maker for a state_dict or a .safetensors; --trust lets the file run anything."
    again = "Download or copy it again; if you made it, save it again with torch.save."
    try:
        content = read_pickle(read_entry(entries["data.pkl"]), entries, allowed.known)
    except BadPickleError as error:
        raise request.refused(error, again if "damaged" in str(error) else remake) from None
    if content.asked:
        raise request.refused(*allowed.advice(content.asked))
    del content
    file.seek(0)
    try:
        with only_these_globals(allowed.globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = _mappable(file, entries)
            loaded = torch.load(path or file, map_location="cpu", weights_only=True, mmap=path is not None)
        check_content(loaded)
    except UnsafeModelError as error:
        raise request.refused(error, remake) from None
    except BnfoldError:
        raise
    except MemoryError:
        raise request.refused("needs more memory than there is", "Run on a larger machine.") from None
    except Exception as error:
        raise request.refused(f"cannot be loaded: {first_line(error, typed=True)}", again) from error
    return loaded


def _mappable(file: BinaryIO, entries: dict[str, Entry]) -> str | None:
    """Return a path under which torch may map the very file that was checked; None where it cannot be mapped.

    torch maps bytes as they lie: it would take those of a compressed entry for numbers, and numbers anywhere.
    """
    try:
        path = f"/proc/self/fd/{file.fileno()}"
    except OSError:  # in memory
        return None
    numbers = [entry for name, entry in entries.items() if name.startswith("data/")]
    plain = all(entry.info.compress_type == zipfile.ZIP_STORED and entry.data % 64 == 0 for entry in numbers)
    return path if plain and os.path.exists(path) else None


def _unpickle_anything(
    file: BinaryIO, entries: dict[str, Entry], request: Request, classes: list[type[nn.Module]]
) -> Any:
    """Unpickle with everything allowed; the user's classes stand in for those of a script."""
    import torch

    from bnfold.files.allowed import Allowed

    allowed = Allowed(classes)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return allowed.user_class(f"{module}.{name}") or super().find_class(module, name)

    shim = ModuleType("pickle")
    shim.__dict__.update(vars(pickle), Unpickler=Unpickler)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = _mappable(file, entries)
            return torch.load(
                path or file, map_location="cpu", weights_only=False, pickle_module=shim, mmap=path is not None
            )
    except Exception as error:
        fix = "Name the Python file that defines its classes: --code FILE.py."
        raise request.refused(f"cannot be loaded: {first_line(error, typed=True)}", fix) from error
    finally:
        gc.collect()


def _unwrapped(module: nn.Module, request: Request) -> nn.Module:
    """Return the module inside a DataParallel."""
    from torch import nn

    if type(module) is nn.DataParallel:
        request.notes.append("The file holds a DataParallel; bnfold uses the module inside it.")
        inner: nn.Module = module.module
        return inner
    return module


def _load_safetensors(file: BinaryIO, request: Request) -> LoadedModel:
    """Load weights into the model that ``--model`` makes."""
    from bnfold.files.safetensors_reader import BadWeightsError, read_safetensors
    from bnfold.files.state_dict import fill_module

    try:
        state = read_safetensors(file)
    except BadWeightsError as error:
        raise request.refused(error, "Download or copy it again.") from None
    if request.key is not None:
        raise UsageError(
            f"{shown_path(request.source)} is a safetensors file, which has no keys to pick from.",
            fix="Leave --key out.",
        )
    if request.spec is None:
        raise request.refused(
            f"holds weights ({len(state)} tensors) but not the model that they belong to", NEEDS_MODEL
        )
    target = resolve_spec(request.spec)
    fill_module(target, state, request)
    return request.loaded(target, "safetensors")


def _load_broken(file: BinaryIO, request: Request) -> LoadedModel:
    """Say what is wrong with an archive that has no directory that can be read."""
    check_archive(file)
    raise refusal(Kind.BROKEN_ZIP, request.source)


_LOADERS = {
    Kind.BROKEN_ZIP: _load_broken,
    Kind.TORCH: _load_torch,
    Kind.SAFETENSORS: _load_safetensors,
    Kind.PROGRAM: load_program,
    Kind.TORCHSCRIPT: load_torchscript,
}
