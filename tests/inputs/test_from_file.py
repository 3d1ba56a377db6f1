"""Real inputs are read from files, by name where they have names, and nothing in the files runs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from bnfold.errors import FileAccessError, RefusedFileError, UsageError
from bnfold.inputs.from_file import read_inputs
from tests.networks import NETWORKS, seed_network

IMAGES = np.random.default_rng(0).normal(size=(3, 1, 28, 28))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_an_npy_is_the_only_input_in_the_dtype_of_the_model(folder: Path) -> None:
    np.save(folder / "x.npy", IMAGES)
    found = read_inputs(seed_network(), folder / "x.npy")
    (images,) = found.inputs
    assert images.dtype == torch.float32
    assert torch.equal(images, torch.from_numpy(IMAGES).float())
    assert "x.npy" in found.how


def test_byte_order_and_memory_order_do_not_matter(folder: Path) -> None:
    np.save(folder / "x.npy", np.asfortranarray(IMAGES.astype(">f4")))
    (images,) = read_inputs(seed_network(), folder / "x.npy").inputs
    assert torch.equal(images, torch.from_numpy(IMAGES.astype(np.float32)))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_are_taken_by_name_whatever_their_order(folder: Path, suffix: str) -> None:
    model, _ = NETWORKS["two-inputs"]()
    path = folder / f"x{suffix}"
    arrays = {"depth": np.ones((2, 1, 8, 8), np.float32), "colour": np.zeros((2, 3, 8, 8), np.float32)}
    np.savez(path, **arrays) if suffix == ".npz" else safetensors.numpy.save_file(arrays, path)
    colour, depth = read_inputs(model, path).inputs
    assert colour.shape == (2, 3, 8, 8)
    assert bool((depth == 1).all())


def test_arrays_without_fitting_names_are_taken_in_order(folder: Path) -> None:
    model, _ = NETWORKS["two-inputs"]()
    np.savez(folder / "x.npz", np.zeros((2, 3, 8, 8)), np.ones((2, 1, 8, 8)))
    first, second = read_inputs(model, folder / "x.npz").inputs
    assert (first.shape[1], second.shape[1]) == (3, 1)


def test_a_compressed_npz_is_read(folder: Path) -> None:
    np.savez_compressed(folder / "x.npz", x=IMAGES)
    assert read_inputs(seed_network(), folder / "x.npz").inputs[0].shape == (3, 1, 28, 28)


def test_integers_stay_integers(folder: Path) -> None:
    np.save(folder / "x.npy", np.arange(6, dtype=np.uint16).reshape(2, 3))
    assert read_inputs(seed_network(), folder / "x.npy").inputs[0].dtype == torch.int64


def test_another_number_of_arrays_than_inputs_is_refused(folder: Path) -> None:
    np.savez(folder / "x.npz", a=IMAGES, b=IMAGES)
    with pytest.raises(UsageError, match=r"holds 2 arrays \(`a`, `b`\), and the model takes 1 inputs \(`x`\)"):
        read_inputs(seed_network(), folder / "x.npz")


def test_python_objects_are_refused_and_not_run(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (folder / "ran",))

    np.save(folder / "x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(RefusedFileError, match="not plain numbers"):
        read_inputs(seed_network(), folder / "x.npy")
    assert not (folder / "ran").exists()


def test_a_header_that_claims_more_than_the_file_holds_is_refused_before_memory_is_taken(folder: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    (folder / "x.npy").write_bytes(header.getvalue() + bytes(64))
    with pytest.raises(RefusedFileError, match="claims more than the file holds"):
        read_inputs(seed_network(), folder / "x.npy")
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    with pytest.raises(RefusedFileError, match="claims more than the file holds"):
        read_inputs(seed_network(), folder / "x.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_a_file_of_another_kind_is_refused(folder: Path, suffix: str) -> None:
    path = folder / f"x{suffix}"
    path.write_text("this is no array")
    with pytest.raises(RefusedFileError, match=f"cannot be read as {suffix}"):
        read_inputs(seed_network(), path)


def test_another_suffix_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"names no format of inputs. Use \.npy"):
        read_inputs(seed_network(), folder / "x.csv")


def test_a_missing_file_is_said_to_be_missing(folder: Path) -> None:
    with pytest.raises(FileAccessError, match="There is no file"):
        read_inputs(seed_network(), folder / "x.npy")


@pytest.mark.parametrize("array", [np.float32(1), np.zeros((0, 1, 28, 28))])
def test_a_file_without_a_sample_is_refused(folder: Path, array: np.ndarray) -> None:
    np.save(folder / "x.npy", array)
    with pytest.raises(UsageError, match="holds no sample"):
        read_inputs(seed_network(), folder / "x.npy")
