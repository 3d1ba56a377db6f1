"""Exported programs (.pt2) and TorchScript archives: both are opened only with ``--trust``."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

from bnfold.errors import first_line
from bnfold.files.archive import check_archive, check_contents
from bnfold.files.loaded import LoadedModel, Request

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_program", "load_torchscript", "module_of_program"]

_AGAIN = "Export it again with the torch of this machine."


def load_program(file: BinaryIO, request: Request) -> LoadedModel:
    """Load what torch.export.save wrote.

    Raises:
        RefusedFileError: without ``trust``, or where torch cannot load it.
    """
    check_contents(check_archive(file))
    if not request.trust:
        raise request.refused(
            "is an exported program (.pt2), and torch.export.load unpickles, which can run code from the file",
            "If you made it or trust who did, give --trust.",
        )
    file.seek(0)
    try:
        model = module_of_program(file)
    except Exception as error:
        raise request.refused(
            f"is an exported program that does not load: {first_line(error, typed=True)}", _AGAIN
        ) from error
    request.notes.append("An exported program has no training mode; it computes what it computed when it was exported.")
    return request.loaded(model, "exported program")


def module_of_program(file: BinaryIO | io.BytesIO) -> nn.Module:
    """Return the module of an exported program, with an ``eval()`` and ``train()`` that do not raise.

    torch gives it a ``training`` flag of True and methods that refuse to change it, whatever its graph computes.
    """
    import torch

    from bnfold.graph.torch_versions import unguarded_module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(file)
        model: Any = unguarded_module(program)
    for part in model.modules():
        part.training = False
        for name in ("train", "eval"):
            part.__dict__.pop(name, None)
    return model  # type: ignore[no-any-return]


def load_torchscript(file: BinaryIO, request: Request) -> LoadedModel:
    """Load what torch.jit.save wrote; it can be run and compared, but not folded.

    Raises:
        RefusedFileError: without ``trust``, or where torch cannot load it.
    """
    check_contents(check_archive(file))
    cannot = "bnfold cannot fold TorchScript, since its graph is neither Python nor torch.fx"
    if not request.trust:
        raise request.refused(
            f"is a TorchScript archive, which is code; and {cannot}",
            "Give the Python model that it was made from; to compare with it, `bnfold verify --trust`.",
        )
    import torch

    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise request.refused(
            f"is a TorchScript archive that does not load: {first_line(error, typed=True)}", _AGAIN
        ) from error
    request.notes.append(f"{cannot}; it can be compared with.")
    return request.loaded(model, "TorchScript")
