"""The user's own code: ``--code`` files, and models named as ``package.module:factory`` or ``file.py:factory``.

This is the only place that runs code, and it runs only what the user named.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError, first_line
from bnfold.files.kinds import open_regular
from bnfold.printable import listed, shown, shown_path

if TYPE_CHECKING:
    from torch import nn

__all__ = ["classes_in", "looks_like_spec", "module_of_spec", "resolve_spec", "run_file"]

_NAME = r"[^\W\d]\w*"
_DOTTED = re.compile(rf"{_NAME}(\.{_NAME})*")
_ZOOS = {"timm": ("timm", "create_model"), "torchvision": ("torchvision.models", "get_model")}
"""Packages that make a model by its name: the module, and its function. They install under the same names."""

_files: dict[tuple[str, bytes], types.ModuleType] = {}


def looks_like_spec(source: str) -> bool:
    """Whether ``source`` is written as ``package.module:factory`` or ``file.py:factory``, and is not a file's path.

    >>> looks_like_spec("torchvision.models:resnet50"), looks_like_spec("nets/small.py:Net")
    (True, True)
    >>> looks_like_spec("model.pt"), looks_like_spec("C:/models/model.pt")
    (False, False)
    """
    place, colon, name = source.rpartition(":")
    if not colon or not _DOTTED.fullmatch(name) or os.path.lexists(source):
        return False
    return place.endswith(".py") or _DOTTED.fullmatch(place) is not None


def resolve_spec(spec: str) -> nn.Module:
    """Return the model that ``package.module:factory`` or ``file.py:factory`` names, by running that code.

    Args:
        spec: the factory is a class or a function, called without arguments, or it is the module itself.
            ``timm:densenet121`` and ``torchvision:resnet50`` name a model as these packages list it.

    Raises:
        UsageError: the spec is misspelt, names nothing, or what it names makes no ``torch.nn.Module``.
        FileAccessError: the file cannot be read.
    """
    from torch import nn

    module = module_of_spec(spec)
    where, _, name = spec.rpartition(":")
    found: Any = _of_zoo(where, name, module) or module
    for part in name.split(".") if found is module else ():
        if not hasattr(found, part):
            own = [known for known in _makers(module) if not known.startswith("_")]
            every = [known for known, value in vars(found).items() if callable(value)]
            raise UsageError(f"{shown_path(where)} has no `{shown(name)}`.", fix=_near(part, own, every))
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UsageError(
            f"{shown_path(spec)} is of type {type(found).__name__}, not a model.",
            fix="Name a class or a function that makes one.",
        )
    try:
        made = found()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
        raise UsageError(
            f"{shown_path(spec)}, called without arguments, fails: {first_line(error, typed=True)}.",
            fix="Name a function that takes no arguments and returns the model.",
        ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"{shown_path(spec)} makes a {type(made).__name__}, not a torch.nn.Module.", fix="Return the model from it."
        )
    return made


def module_of_spec(spec: str) -> types.ModuleType:
    """Return the Python module that a spec names before its colon, imported or run from its file.

    Raises:
        UsageError: the spec is misspelt, or its code fails.
        FileAccessError: the file cannot be read.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not _DOTTED.fullmatch(name) or not (place.endswith(".py") or _DOTTED.fullmatch(place)):
        raise UsageError(
            f"`{shown_path(spec)}` is not the name of a model.",
            fix="Write package.module:factory or path/to/file.py:factory.",
        )
    return run_file(Path(place)) if place.endswith(".py") else _import(place)


def run_file(path: Path) -> types.ModuleType:
    """Run a Python file that the user named and return it as a module; the same file is run once per process.

    Nothing is written beside it. Its folder is added to the end of ``sys.path``, so that it finds its neighbours and
    they cannot stand in for installed packages.

    Raises:
        UsageError: the file is no Python, or it fails when run.
        FileAccessError: it cannot be read.
    """
    with open_regular(path) as file:
        source = file.read()
    where = os.path.realpath(path)
    key = (where, hashlib.sha256(source).digest())
    if key in _files:
        return _files[key]
    module = types.ModuleType(_free_name(path))
    module.__file__ = where
    before = sys.dont_write_bytecode, sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    _add_to_path(os.path.dirname(where))
    try:
        sys.dont_write_bytecode = True
        exec(compile(source, where, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        _restore(module.__name__, before[1])
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
        raise UsageError(
            f"{shown_path(path)} fails when run: {first_line(error, typed=True)}{_line_of(error, where)}.",
            fix="It is run to define the classes: put what trains or prints under `if __name__ == '__main__':`.",
        ) from error
    finally:
        sys.dont_write_bytecode = before[0]
    _files[key] = module
    return module


def classes_in(modules: Iterable[types.ModuleType]) -> list[type[nn.Module]]:
    """Return the nn.Module subclasses that stand in the modules' names, those defined there before those imported."""
    from torch import nn

    own: list[type[nn.Module]] = []
    imported: list[type[nn.Module]] = []
    for module in modules:
        for value in list(vars(module).values()):
            if (
                isinstance(value, type)
                and issubclass(value, nn.Module)
                and not value.__module__.startswith("torch.nn.")
            ):
                (own if value.__module__ == module.__name__ else imported).append(value)
    return list(dict.fromkeys(own + imported))


def _of_zoo(package: str, name: str, module: types.ModuleType) -> Callable[[], Any] | None:
    """Return what makes a model by the name that ``timm`` or ``torchvision`` lists it under; None for other names.

    Raises:
        UsageError: the package lists no such model.
    """
    if package not in _ZOOS:
        return None
    place, function = _ZOOS[package]
    zoo = _import(place)
    known = [str(one) for one in zoo.list_models()]
    first = name.partition(".")[0]
    if first not in known:  # what follows a dot names weights, which are not fetched
        if hasattr(module, first):
            return None
        raise UsageError(f"{package} has no model `{shown(name)}`.", fix=_near(name, known))
    return functools.partial(getattr(zoo, function), name)


def _near(name: str, known: Sequence[str], every: Sequence[str] = ()) -> str:
    """Return what to do about a name that is not there: near ones, of all there are, or some that are known."""
    close = difflib.get_close_matches(name, every or known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {listed(close)}?"
    return f"It has {listed(known, 5)}." if known else "Name a class or a function that makes the model."


def _makers(module: types.ModuleType) -> list[str]:
    """Return the names of the classes and functions that a module defines itself."""
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]


def _import(name: str) -> types.ModuleType:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        _add_to_path(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(f"There is no Python module `{shown(missing)}` here.", fix=_fix_for(missing)) from None
        raise UsageError(
            f"`{shown(name)}` needs the module `{shown(missing)}`, which is not installed.", fix="Install it."
        ) from error
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
        raise UsageError(
            f"Importing `{shown(name)}` fails: {first_line(error, typed=True)}.", fix="Make the import work first."
        ) from error


def _fix_for(missing: str) -> str:
    if missing in _ZOOS:
        return f"Run `pip install {missing}`."
    return "Install its package, or run where it can be imported; a file is written path/to/file.py:factory."


def _add_to_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


def _free_name(path: Path) -> str:
    """Return a module name for a file: its stem, unless that would hide another module."""
    stem = path.stem
    if _DOTTED.fullmatch(stem) and stem not in sys.modules and stem not in sys.stdlib_module_names:
        try:
            found = importlib.util.find_spec(stem)
        except (ImportError, ValueError):
            found = None
        if found is None or (found.origin is not None and os.path.realpath(found.origin) == os.path.realpath(path)):
            return stem
    number = 1
    while f"_bnfold_code_{number}_{stem}" in sys.modules:
        number += 1
    return f"_bnfold_code_{number}_{stem}"


def _restore(name: str, module: types.ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module


def _line_of(error: BaseException, where: str) -> str:
    """Return the line of the user's file in which it failed, as the end of a sentence."""
    if isinstance(error, SyntaxError):
        return ""  # its own text says
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == where:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" (line {line})"
