"""Import torchvision, and libraries that need it or torchaudio, beside a torch that is built for the CPU.

The wheel of torchvision 0.28 is built for CUDA: beside a CPU build of torch its compiled operators do not load, and
``import torchvision`` stops at ``operator torchvision::nms does not exist``. Nothing that a BatchNorm stands in needs
them. :func:`load` declares their schemas first, which is all that the import asks for, and gives ``nms`` a plain
implementation, so that the detectors run to their end (``roi_align`` has one in torchvision itself).

That of torchaudio is too: ``import torchaudio`` stops at ``Could not load this library``. It has a way to do without,
taken where the file is missing; :func:`load` makes it take that.

Install with ``pip install --no-deps timm torchvision==0.28.0``, then ``pip install huggingface_hub pyyaml safetensors``
(without ``--no-deps``, pip would replace torch). ``zoo.py`` says how to install the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["available", "load"]

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, "
    "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, SymInt batch_size, SymInt channels, "
    "SymInt height, SymInt width) -> Tensor",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, "
    "SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) "
    "-> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "_cuda_version() -> int",
)
_state: dict[str, Any] = {}  # the declared library: its declarations last as long as it does


def available(library: str) -> bool:
    """Say whether a library such as ``"timm"`` is there, to be imported by :func:`load`, and torchvision with it."""
    return all(importlib.util.find_spec(name) is not None for name in ("torchvision", library))


def load(library: str) -> ModuleType:
    """Import a library such as ``"timm"``, after what stands in for compiled operators that do not load.

    Raises:
        ImportError: the library is not installed; see the module's docstring.
    """
    _torchvision()
    _torchaudio()
    return importlib.import_module(library)


def _torchaudio() -> None:
    spec = importlib.util.find_spec("torchaudio")
    name = "torchaudio._extension"
    if spec is None or not spec.submodule_search_locations or name in sys.modules:
        return
    if not _compiled_operators_load(Path(spec.submodule_search_locations[0]) / "lib", "_torchaudio*.so"):
        without: Any = ModuleType(name)
        without._IS_TORCHAUDIO_EXT_AVAILABLE = False
        without.fail_if_no_align = lambda function: function
        sys.modules[name] = without


def _torchvision() -> None:
    if "torchvision" in _state:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("torchvision is not installed: pip install --no-deps timm torchvision==0.28.0")
    compiled = _compiled_operators_load(Path(spec.submodule_search_locations[0]), "_C*.so")
    if not compiled:
        _declare()
    _state["torchvision"] = importlib.import_module("torchvision")
    if not compiled:
        importlib.import_module("torchvision.ops.boxes")._assert_has_ops = lambda: None  # type: ignore[attr-defined]


def _compiled_operators_load(folder: Path, pattern: str) -> bool:
    torch: Any = importlib.import_module("torch")
    for file in folder.glob(pattern):
        try:
            torch.ops.load_library(file)
        except OSError:
            continue
        return True
    return False


def _declare() -> None:
    torch: Any = importlib.import_module("torch")
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    library.impl("nms", _nms, "CPU")
    _state["declared"] = library


def _nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Greedy non-maximum suppression; boxes (N, 4) as x1, y1, x2, y2, scores (N,). Returns kept indices, best first."""
    import torch

    order = torch.argsort(scores, descending=True, stable=True)
    boxes = boxes[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(order), dtype=torch.bool)
    kept = []
    for index in range(len(order)):
        if not alive[index]:
            continue
        kept.append(index)
        low = torch.maximum(boxes[index, :2], boxes[index + 1 :, :2])
        high = torch.minimum(boxes[index, 2:], boxes[index + 1 :, 2:])
        common = (high - low).clamp(min=0).prod(dim=1)
        alive[index + 1 :] &= common <= iou_threshold * (area[index] + area[index + 1 :] - common)
    return order[torch.tensor(kept, dtype=torch.int64)]
