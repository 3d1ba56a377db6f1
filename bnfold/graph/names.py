"""Names of a model's parts that a graph cannot be written with.

torch.fx and torch.export write a graph as Python source and run that. A part's name goes into the source as it is, in
double quotes where it is no identifier: a quote or a backslash in it would end the quotes, and what follows would be
run as code. Names come out of files, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from keyword import iskeyword

import torch
from torch import nn
from torch.fx import Graph

from bnfold.errors import CaptureError

__all__ = ["refuse_names", "require_writable"]


def refuse_names(parts: Mapping[str, nn.Module]) -> None:
    """Raise for a name that would not stay a name in source.

    Args:
        parts: a model's modules by name.

    Raises:
        CaptureError: a part, a parameter or a buffer has such a name.
    """
    for path, part in parts.items():
        if isinstance(part, torch.jit.ScriptModule):  # its names were identifiers, to be compiled
            continue
        _require_quotable((*part._modules, *part._parameters, *part._buffers), path or type(part).__name__)


def require_writable(graph: Graph, owner: str) -> None:
    """Raise for a graph that reads a part whose name cannot be written.

    Raises:
        CaptureError: naming the part.
    """
    targets = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    for target in targets:
        parts = target.split(".")
        _require_quotable(parts, owner)
        word = next((part for part in parts if iskeyword(part)), None)
        if word is not None:
            raise CaptureError(
                f"No graph of {owner} can be written: `{word}` in the name `{target}` is a word of Python's own.",
                fix="Give that part another name.",
            )


def _require_quotable(names: Iterable[str], owner: str) -> None:
    for name in names:
        if not isinstance(name, str) or not name or "." in name or not _is_quotable(name):
            raise CaptureError(
                f"A part of {ascii(owner)[1:-1]} is called {name!a}, which no graph can be written with.",
                fix="Give it a name of letters, digits and underscores.",
            )


def _is_quotable(name: str) -> bool:
    return name.isidentifier() or (name.isprintable() and '"' not in name and "\\" not in name)
