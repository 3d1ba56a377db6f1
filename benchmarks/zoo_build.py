"""Build a model of the zoo with random weights, at a small input size, with BatchNorms that no wrong fold can hide in.

Fresh BatchNorms are close to the identity and a residual branch often starts at zero: a folder that drops a layer
would pass. So every scale and shift is random here, a third of the scales are negative and some nearly zero, the
statistics are those of real activations, moved a little, and parameters that start constant are moved too.

A few attention networks are chaotic with random weights: they multiply a rounding by 1e7 and more, and no two ways to
compute them agree. Their variances are raised until they are not, which makes every layer a little less steep.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import shim
from benchmarks.zoo_list import Entry
from benchmarks.zoo_measure import call, distance, leaves

__all__ = ["Subject", "build", "fresh_inputs"]

SIZES = (64, 96, 128, 160, 192, 224)
DAMPING = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 4.0)
NUDGE = 1e-5  # of the input, relative
MOST_AMPLIFIED = 1e3  # of that, in units of the output's peak
CALIBRATION_BATCH = 4
IMAGES = 3  # in a comparison
MANY_PARAMETERS, MANY_PIXELS = 250e6, 384**2  # from there on one image is compared, and two calibrate
_DETECTORS = {"faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos", "ssd", "ssdlite"}
_FRAMES = {"s3d": 16, "mc3_18": 8, "r3d_18": 8, "r2plus1d_18": 8}  # of the models of videos


@dataclass(frozen=True)
class Subject:
    """A model that is ready to be folded.

    Attributes:
        model: in eval mode, float32.
        shape: of one input, channels first.
        entry: where it comes from.
        seed: that its numbers come from.
        damping: what the variances were multiplied by, to make the model less than chaotic; mostly 1.
        images: how many are compared at a time: one where more would take too much memory.
    """

    model: nn.Module
    shape: tuple[int, ...]
    entry: Entry
    seed: int
    damping: float = 1.0
    images: int = IMAGES


def build(entry: Entry, *, seed: int = 0, at_least: int = 0) -> Subject:
    """Build a model, find the smallest input that it takes, and give its BatchNorms telling numbers.

    Args:
        entry: which model.
        seed: that all its numbers come from.
        at_least: the smallest height and width to try, unless the model's own is smaller.

    Raises:
        Exception: whatever the library raises, where no input size works.
    """
    torch.manual_seed(seed)
    model = _create(entry).eval()
    shape = _smallest_shape(model, entry, at_least)
    generator = torch.Generator().manual_seed(seed + 1)
    _move_constants(model, generator)
    _randomise(model, generator)
    heavy = entry.parameters >= MANY_PARAMETERS or shape[-1] * shape[-2] >= MANY_PIXELS
    _calibrate(model, fresh_inputs(entry, shape, batch=2 if heavy else CALIBRATION_BATCH, seed=seed + 2))
    _jitter(model, generator)
    damping = _damp(model, fresh_inputs(entry, shape, batch=2, seed=seed + 3), entry, generator)
    return Subject(model.eval(), shape, entry, seed, damping, 1 if heavy else IMAGES)


def fresh_inputs(entry: Entry, shape: tuple[int, ...], *, batch: int, seed: int) -> tuple[Any, ...]:
    """Return positional inputs for one model: standard normal ones (in 0 to 1 for a detector of torchvision)."""
    generator = torch.Generator().manual_seed(seed)
    if entry.family in _DETECTORS:
        return ([torch.rand(shape, generator=generator) for _ in range(batch)],)
    x = torch.randn((batch, *shape), generator=generator)
    if entry.more:
        return (x, *eval(entry.more, {"torch": torch, "x": x}))
    return (x, torch.randn(x.shape, generator=generator)) if entry.family == "raft" else (x,)


# --- the model ----------------------------------------------------------------------------------------------------


def _create(entry: Entry) -> nn.Module:
    library = shim.load(entry.library)
    if entry.builder:
        module, _, expression = entry.builder.partition(":")
        return eval(expression, dict(vars(importlib.import_module(module))))  # type: ignore[no-any-return]
    if entry.library == "timm":
        return library.create_model(entry.model, pretrained=False)  # type: ignore[no-any-return]
    builder = library.models.get_model_builder(entry.model)
    return builder(**_arguments(entry, builder))  # type: ignore[no-any-return]


def _arguments(entry: Entry, builder: Any) -> dict[str, Any]:
    """No pretrained weights, and detectors that look at small images and keep some of what they find."""
    known = inspect.signature(builder).parameters
    arguments: dict[str, Any] = {"weights": None}
    if "weights_backbone" in known:
        arguments["weights_backbone"] = None
    if "init_weights" in known:
        arguments["init_weights"] = False  # a slow truncated normal; the numbers here are random anyway
    family = entry.family
    if family.endswith("_rcnn"):
        arguments |= {"min_size": 128, "max_size": 160, "box_score_thresh": 0.0, "box_detections_per_img": 10}
        arguments |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20}
    elif family in ("retinanet", "fcos"):
        arguments |= {"min_size": 128, "max_size": 160, "score_thresh": 0.0, "topk_candidates": 20}
    elif family in ("ssd", "ssdlite"):
        arguments |= {"score_thresh": 0.0, "topk_candidates": 20}
    return arguments


def _shapes(entry: Entry) -> Iterator[tuple[int, ...]]:
    if entry.builder:
        yield entry.shape
        return
    channels, *space = entry.shape or (3, 224, 224)
    own = max(space)
    sizes = [size for size in SIZES if size < own] + [own]
    if entry.family in _DETECTORS or entry.family == "raft":
        sizes = [128, 160]
    if entry.model == "s3d":
        sizes = [own]  # it ends in a pool of just that size
    if entry.model in _FRAMES:
        yield from ((channels, _FRAMES[entry.model], size, size) for size in sizes)
    else:
        yield from ((channels, size, size) for size in sizes)


def _smallest_shape(model: nn.Module, entry: Entry, at_least: int) -> tuple[int, ...]:
    """The first shape with which the model runs, on a batch of 2."""
    problem: Exception | None = None
    shapes = list(_shapes(entry))
    for shape in [shape for shape in shapes if shape[-1] >= at_least] or shapes[-1:]:
        try:
            with torch.no_grad():
                outputs = model(*fresh_inputs(entry, shape, batch=2, seed=0))
        except Exception as error:
            problem = error
            continue
        tensors = [leaf for leaf in leaves(outputs) if isinstance(leaf, Tensor)]
        any_shape = entry.builder or entry.family in _DETECTORS
        if tensors and (any_shape or all(tensor.shape[0] == 2 for tensor in tensors)):
            return shape
    raise problem or ValueError("no input size works")


# --- its numbers --------------------------------------------------------------------------------------------------


def _batch_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _move_constants(model: nn.Module, generator: torch.Generator) -> None:
    """Move parameters whose values are all equal: zeros, ones and layer scales of 1e-6 hide what stands before them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or bool((parameter != parameter.flatten()[0]).any()):
                continue
            spread = 0.1 if parameter.dim() < 2 else 1 / math.sqrt(max(1, parameter[0].numel()))
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=spread)


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Scales of 0.5 to 1.5, a third of them negative, one in twenty nearly zero; shifts of either sign."""
    with torch.no_grad():
        for layer in _batch_norms(model):
            if layer.weight is None:
                continue
            count = layer.weight.shape
            kind = torch.rand(count, generator=generator)
            scale = 0.5 + torch.rand(count, generator=generator)
            scale = torch.where(kind < 1 / 3, -scale, scale)
            scale = torch.where(kind > 0.95, scale * 1e-4, scale)
            layer.weight.copy_(scale)
            layer.bias.copy_(0.3 * torch.randn(count, generator=generator))


def _calibrate(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Set the statistics to those of one batch; averaged over the calls of a layer that is called more than once."""
    layers = [layer for layer in _batch_norms(model) if layer.track_running_stats]
    momentum = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.training = True  # of this module only: dropout inside or around it stays off
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for layer, value in zip(layers, momentum, strict=True):
            layer.momentum = value
            layer.training = False


def _jitter(model: nn.Module, generator: torch.Generator) -> None:
    """Move the statistics a little, so that they are those of no batch, and keep the variances off zero."""
    with torch.no_grad():
        for layer in _batch_norms(model):
            if layer.running_var is None:
                continue
            variance, count = layer.running_var, layer.running_var.shape
            variance.clamp_(min=float(variance.mean()) * 1e-3 + 1e-8)
            layer.running_mean += 0.1 * variance.sqrt() * torch.randn(count, generator=generator)
            variance *= torch.exp(0.2 * torch.randn(count, generator=generator))


def _damp(model: nn.Module, inputs: tuple[Any, ...], entry: Entry, generator: torch.Generator) -> float:
    """Raise the variances step by step until a nudge of the input no longer changes the output by much."""
    if entry.family in _DETECTORS:  # their lists of boxes jump, and say nothing about the layers before
        return 1.0
    nudged = tuple(
        x * (1 + NUDGE * torch.randn(x.shape, generator=generator)) if x.is_floating_point() else x for x in inputs
    )
    before = 1.0
    for damping in DAMPING:
        with torch.no_grad():
            for layer in _batch_norms(model):
                if layer.running_var is not None:
                    layer.running_var *= damping / before
        before = damping
        if distance(call(model, inputs), call(model, nudged)) <= NUDGE * MOST_AMPLIFIED:
            break
    return before
