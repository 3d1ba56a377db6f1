"""What a pickled model may be made of: torch.nn's own modules and the module classes that the user named.

:func:`only_these_globals` hands torch's weights-only unpickler exactly the names that a checked file asks for, and
leaves torch's own list as it was found.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import _weights_only_unpickler, nn

from bnfold.printable import listed, shown

__all__ = ["Allowed", "only_these_globals"]

_CONTAINERS: dict[str, type] = {"argparse.Namespace": argparse.Namespace}
_KNOWN_CASES: tuple[tuple[str, tuple[str, str]], ...] = (  # what a name that is asked for means, and what helps
    (
        "torch.fx.graph_module.",
        (
            "holds a torch.fx.GraphModule, and loading that runs source code from the file",
            "Save the model that was traced, or its state_dict; --trust runs the code.",
        ),
    ),
    (
        "torch.nn.parameter.Uninitialized",
        ("holds a lazy layer that has no weights yet", "Run the model once on an input, and save it again."),
    ),
    (
        "torch.nn.utils.weight_norm.",
        (
            "holds a weight norm, which is a hook: code that runs with every call",
            "Call torch.nn.utils.remove_weight_norm on the layers, which changes nothing, and save again.",
        ),
    ),
    (
        "torch.nn.utils.spectral_norm.",
        (
            "holds a spectral norm, which is a hook: code that runs with every call",
            "Call torch.nn.utils.remove_spectral_norm on the layers in eval mode, and save again.",
        ),
    ),
    (
        "torch.nn.parallel.distributed.",
        ("holds a DistributedDataParallel, which needs its process group", "Save model.module instead."),
    ),
    (
        "torch.ao.",
        ("holds parts of a quantized model", "Fold the float model, before it is quantized."),
    ),
    (
        "torch.optim.",
        ("holds an optimizer", "Save the model, or its state_dict, without the optimizer."),
    ),
    (
        "numpy.",
        (
            "holds NumPy values, which are made by calling NumPy",
            "Save the state_dict alone, or convert the values with float(value).",
        ),
    ),
)
_list_lock = threading.RLock()


class Allowed:
    """Resolves the names that a file asks for, without importing anything.

    Args:
        classes: module classes from files or specs that the user named, those defined there before those imported.
        has_code: whether the user named any code; only the advice depends on it.
    """

    def __init__(self, classes: Iterable[type[nn.Module]] = (), *, has_code: bool = False) -> None:
        self.has_code = has_code
        self.classes = list(classes)
        self.exact = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in reversed(self.classes)}
        self.used: dict[str, type] = {}
        self._known: dict[str, str | None] = {}
        self._torch = _weights_only_unpickler._get_allowed_globals()

    def known(self, full: str) -> str | None:
        """Say how a name may be used; see :func:`bnfold.files.pickles.read_pickle`."""
        if full not in self._known:
            found = self._class_of(full)
            if found is not None:
                self.used[full] = found
            self._known[full] = "class" if found is not None else "value" if full in self._torch else None
        return self._known[full]

    def _class_of(self, full: str) -> type | None:
        module, _, name = full.rpartition(".")
        if module.startswith("torch."):
            return _torch_class(module, name)
        if full in _CONTAINERS:
            return _CONTAINERS[full]
        return self.user_class(full)

    def user_class(self, full: str) -> type | None:
        """Return the user's class that a name means: the very one, or one of that name, whatever module it had."""
        module, _, name = full.rpartition(".")
        if full in self.exact:
            return self.exact[full]
        same = [kind for kind in self.classes if kind.__qualname__ == name]
        by_file = [kind for kind in same if _stem(kind) == module.rpartition(".")[2]]
        return next(iter(by_file or same), None)

    def globals(self) -> list[Any]:
        """Return what the unpickler is to be given: each class under the name that the file uses."""
        return [(kind, full) for full, kind in self.used.items()]

    def advice(self, asked: list[str]) -> tuple[str, str]:
        """Return what a file asks for that it may not have, and what would help."""
        for full in asked:
            found = next((words for prefix, words in _KNOWN_CASES if full.startswith(prefix)), None)
            if found is not None:
                return found
        classes = [full for full in asked if _may_be_module_class(full)]
        others = [full for full in asked if full not in classes]
        if others:
            return (
                f"asks for {listed(others)}, but only module classes and plain data are allowed",
                "If you made it, save its state_dict and give --model SPEC; --trust lets the file run anything.",
            )
        what = f"holds objects of {listed(classes)}, which bnfold does not know"
        packages = sorted({full.partition(".")[0] for full in classes} - {"__main__"})
        if self.has_code:
            return what, "The --code and --model given do not define them: name the Python file that does."
        fix = f"Name the Python file that defines {'them' if len(classes) > 1 else 'it'}: --code FILE.py"
        module, _, name = classes[0].rpartition(".")
        if len(packages) == 1 and module.count(".") > 1:
            line = f"from {shown(module, 40)} import {shown(name, 40)}"
            return what, f"{fix} (for an installed package, one that says `{line}`)."
        return what, f"{fix}."


def _torch_class(module: str, name: str) -> type | None:
    """Return one of torch.nn's own module classes; of all others, None."""
    if not module.startswith(("torch.nn.modules.", "torch.nn.parallel.data_parallel")):
        return None
    found = getattr(sys.modules.get(module), name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        return None
    is_own = found.__module__ == module and found.__qualname__ == name
    return found if is_own and not issubclass(found, nn.modules.lazy.LazyModuleMixin) else None


def _stem(kind: type) -> str:
    """Return the name of the file that defines a class, without its suffix."""
    place = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__.rpartition(".")[2] if place is None else Path(place).stem


def _may_be_module_class(full: str) -> bool:
    """Guess whether a name that was not found is a class of modules, and not a function or an odd object."""
    module, _, name = full.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if found is not None and module != "__main__":
        return isinstance(found, type) and issubclass(found, nn.Module)
    top = module.partition(".")[0]
    return name[:1].isupper() and (top not in sys.stdlib_module_names or top == "__main__") and top != "torch"


@contextmanager
def only_these_globals(wanted: list[Any]) -> Iterator[None]:
    """Let torch's weights-only unpickler use ``wanted`` and nothing that was added before, then put all back.

    ``torch.serialization.safe_globals`` alone drops, on its way out, what a caller had added of the same.
    """
    with _list_lock:
        found = _weights_only_unpickler._marked_safe_globals_set
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals(wanted):
                yield
        finally:
            # What torch's own modules have added meanwhile, because loading imported them, stays.
            added = [one for one in torch.serialization.get_safe_globals() if one not in found]
            _weights_only_unpickler._marked_safe_globals_set = found
            if added:
                torch.serialization.add_safe_globals(added)
