"""Real inputs from a file: .npy, .npz and .safetensors, read without running anything in them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.errors import BnfoldError, RefusedFileError, UsageError, first_line
from bnfold.files.kinds import open_regular
from bnfold.inputs.probe import required_inputs
from bnfold.inputs.search import FoundInputs
from bnfold.printable import bytes_in_words, listed, shown_path

__all__ = ["read_inputs", "read_tensors"]

_LARGEST = 8 << 30  # bytes that the arrays of an .npz may claim


def read_inputs(model: nn.Module, path: Path) -> FoundInputs:
    """Read the inputs of a model from a file.

    Arrays whose names are those of ``forward``'s arguments are taken by name, others in their order in the file.
    Floating-point arrays are converted to the model's dtype; integers and booleans stay what they are.

    Args:
        model: tells the names, the dtype and the device.
        path: .npy for a single input, .npz or .safetensors for one or several, batch first.

    Raises:
        UsageError: the suffix is another, or the arrays are not as many as the inputs.
        FileAccessError: the file cannot be read.
        RefusedFileError: its content is not what its suffix says, or holds Python objects.
    """
    chosen = read_tensors(required_inputs(model), path)
    return FoundInputs(tuple(_like(model, tensor, path) for tensor in chosen), f"from {shown_path(path)}")


def read_tensors(names: Sequence[str], path: Path) -> list[Tensor]:
    """Read one array for each of ``names``, as it is in the file; raises what :func:`read_inputs` does."""
    reader = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}.get(path.suffix)
    if reader is None:
        raise UsageError(
            f"The suffix of {shown_path(path)} names no format of inputs.", fix="Use .npy, .npz or .safetensors."
        )
    with open_regular(path) as file:
        try:
            arrays = reader(file)
        except BnfoldError:
            raise
        except MemoryError:
            raise RefusedFileError(
                f"{shown_path(path)} claims more memory than there is.", fix="Give fewer samples."
            ) from None
        except Exception as error:
            raise RefusedFileError(
                f"{shown_path(path)} cannot be read as {path.suffix}: {first_line(error, typed=True)}.",
                fix="Save plain arrays of numbers with numpy.save, numpy.savez or safetensors.",
            ) from error
    return _chosen(arrays, names, path)


def _npy(file: BinaryIO) -> dict[str, Tensor]:
    return {"": _tensor(_array(file, os.fstat(file.fileno()).st_size))}


def _npz(file: BinaryIO) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > _LARGEST or len({member.filename for member in members}) != len(members):
            raise ValueError(f"it claims {bytes_in_words(total)} of arrays, or holds a name twice")
        found = {}
        for member in members:
            with archive.open(member) as stream:
                found[member.filename.removesuffix(".npy")] = _tensor(_array(stream, member.file_size))
        return found


def _safetensors(file: BinaryIO) -> dict[str, Tensor]:
    from bnfold.files.safetensors_reader import read_safetensors

    return read_safetensors(file)


def _array(stream: Any, size: int) -> np.ndarray[Any, Any]:
    """Read one array, after a look at whether the stream can hold what its header claims."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise ValueError(f"it holds {dtype}, not plain numbers")
    count = 1
    for extent in shape:
        count *= extent
    if count * dtype.itemsize > size:
        raise ValueError("its header claims more than the file holds")
    content = stream.read(count * dtype.itemsize)
    if len(content) != count * dtype.itemsize:
        raise ValueError("it is cut short")
    return np.frombuffer(bytearray(content), dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    return torch.from_numpy(native.copy(order="C"))


def _chosen(arrays: dict[str, Tensor], names: Sequence[str], path: Path) -> list[Tensor]:
    if all(name in arrays for name in names):
        return [arrays[name] for name in names]
    if len(arrays) != len(names):
        raise UsageError(
            f"{shown_path(path)} holds {len(arrays)} arrays ({listed(arrays)}), and the model takes "
            f"{len(names)} inputs ({listed(names)}).",
            fix="Name the arrays after the inputs.",
        )
    return list(arrays.values())


def _like(model: nn.Module, tensor: Tensor, path: Path) -> Tensor:
    if tensor.ndim == 0 or tensor.shape[0] == 0:
        raise UsageError(f"{shown_path(path)} holds no sample: its shape is {tuple(tensor.shape)}.", fix="Give some.")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))
    return tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype)
