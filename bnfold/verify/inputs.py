"""The inputs that two models are compared on: seeded, of several distributions, at batch sizes 1, 2 and 3.

Shapes and dtypes come from the example. What is not a batch of floating numbers stays near the example: integers and
booleans are drawn from the example's own values (they may be indices), and scalars are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.capture.nests import computable
from bnfold.errors import UsageError
from bnfold.export.axes import Axis, resized
from bnfold.graph.batch_dimension import as_tuple, batch_positions

__all__ = ["Batches", "Case", "given_case", "has_other_batch", "other_size", "seeded_cases", "sizes_in_words"]


@dataclass(frozen=True)
class Case:
    """One set of inputs.

    Attributes:
        name: in words, for the report.
        inputs: the positional inputs.
        given: whether the user gave it; what the original does with it must then be matched, NaN included.
        resized: whether its spatial size is not the example's; an export takes it where it declares no size.
    """

    name: str
    inputs: tuple[Any, ...]
    given: bool = False
    resized: bool = False


Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]

Batches = Literal["usual", "some", "own"]
"""The batch sizes to draw: 1, 2 and 3; of these every second one replaced by the example's; or the example's alone."""


def given_case(name: str, inputs: Any) -> Case:
    """Return the user's own inputs as a case.

    Raises:
        UsageError: there is no tensor in them, or a NaN, or an infinity.
    """
    values = as_tuple(inputs)
    for position, value in enumerate(values):
        if not all(_finite(leaf) for leaf in pytree.tree_leaves(value)):
            raise UsageError(
                f"Input {position} of {name} holds NaN or infinity.", fix="Compare on inputs that are finite numbers."
            )
    return Case(name, values, given=True)


def seeded_cases(
    example: Sequence[Any], *, seed: int, thorough: bool = False, batches: Batches = "usual"
) -> list[Case]:
    """Return cases of several distributions and batch sizes, the same for the same seed.

    Args:
        example: the user's example inputs.
        seed: of the generator.
        thorough: four more of them, from another seed.
        batches: which sizes.
    """
    plan: list[tuple[str, int, Draw]] = [
        ("normal", 2, _normal),
        ("image-like", 1, _smooth),
        ("sparse", 3, _sparse),
        ("large", 1, _large),
    ]
    if thorough:
        plan += [
            ("uniform", 1, _uniform),
            ("constant", 2, _constant),
            ("normal, again", 3, _normal),
            ("small", 1, _small),
        ]
    generator = torch.Generator().manual_seed(seed)
    positions = batch_positions(example)
    own = int(example[positions[0]].shape[0]) if positions else 0
    every = {"usual": 0, "some": 2, "own": 1}[batches] if own > 0 else 0
    if every:
        plan = [(name, own if number % every == 0 else size, draw) for number, (name, size, draw) in enumerate(plan)]
    return [
        Case(f"{name}, batch {size}" if positions else name, _drawn(example, size, draw, generator))
        for name, size, draw in plan
    ]


def has_other_batch(example: Sequence[Any], cases: Sequence[Case]) -> bool:
    """Whether a case is of another batch than the example's; true where there is no batch."""
    positions = batch_positions(example)
    if not positions:
        return True
    return any(case.inputs[positions[0]].shape[0] != example[positions[0]].shape[0] for case in cases)


def sizes_in_words(many: Sequence[Sequence[Any]]) -> str:
    """Return the batches of many inputs, and their sizes where they have several: ``batch 1-3, 128x128 and 96x160``."""
    positions = [batch_positions(inputs) for inputs in many]
    shapes = [tuple(inputs[at[0]].shape) for inputs, at in zip(many, positions, strict=True) if at]
    batches = sorted({shape[0] for shape in shapes})
    if not batches:
        return ""
    row = len(batches) > 2 and batches == list(range(batches[0], batches[-1] + 1))
    told = f"batch {batches[0]}-{batches[-1]}" if row else f"batch {' and '.join(map(str, batches))}"
    sizes = list(dict.fromkeys(_size_in_words(shape) for shape in shapes))
    return f"{told}, {' and '.join(sizes)}" if len(sizes) > 1 else told


def _size_in_words(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[2:] or shape[1:]))


def other_size(
    example: Sequence[Any], *, seed: int, batches: Batches = "usual", axes: Sequence[Axis] = ()
) -> Case | None:
    """Return a case of another height and width than the example's, or None if it has none.

    It is of batch 1, or of the example's where no other is drawn.

    Args:
        example: the user's example inputs.
        seed: of the generator.
        batches: which sizes of batches are drawn.
        axes: the dimensions that an export leaves free: see :func:`bnfold.export.axes.resized`. Without them three
            quarters of every size, and only where one input is an image, ``(N, C, H, W)``, or a volume or sequence
            like it: with several inputs their sizes may depend on each other.
    """
    if any(axis.name != "batch" for axis in axes):
        inputs = resized(example, axes, torch.Generator().manual_seed(seed + 1))
        if inputs is None:
            return None
        shape = inputs[batch_positions(inputs)[0]].shape
        return Case(f"normal, batch {shape[0]}, size {_size_in_words(shape)}", inputs, resized=True)
    tensors = [value for value in example if isinstance(value, Tensor)]
    if len(tensors) != 1 or not tensors[0].is_floating_point() or tensors[0].ndim < 3:
        return None
    sizes = tensors[0].shape[2:]
    step = 32 if all(size % 32 == 0 for size in sizes) else 2
    smaller = tuple(max(step, size * 3 // 4 // step * step) if size >= 4 else size for size in sizes)
    if smaller == tuple(sizes):
        return None
    generator = torch.Generator().manual_seed(seed + 1)
    batch = tensors[0].shape[0] if batches == "own" else 1
    shape = (batch, tensors[0].shape[1], *smaller)
    image = _normal(shape, generator).to(device=tensors[0].device, dtype=tensors[0].dtype)
    inputs = tuple(image if value is tensors[0] else value for value in example)
    return Case(f"normal, batch {batch}, size {'x'.join(map(str, smaller))}", inputs, resized=True)


def _drawn(example: Sequence[Any], size: int, draw: Draw, generator: torch.Generator) -> tuple[Any, ...]:
    positions = batch_positions(example)

    def inside(value: Any) -> Any:  # of a list or a dict: no batch, so of the example's size
        many = isinstance(value, Tensor) and value.ndim > 0
        return _like(value, value.shape[0], draw, generator) if many else value

    def drawn(position: int, value: Any) -> Any:
        if position in positions:
            return _like(value, size, draw, generator)
        return value if isinstance(value, Tensor) else pytree.tree_map(inside, value)

    return tuple(drawn(position, value) for position, value in enumerate(example))


def _finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(torch.isfinite(computable(value)).all())


def _like(value: Tensor, size: int, draw: Draw, generator: torch.Generator) -> Tensor:
    """Return a tensor of ``value``'s dtype and device and of batch ``size``."""
    shape = (size, *value.shape[1:])
    if value.is_complex():
        drawn = torch.complex(draw(shape, generator), draw(shape, generator))
    elif value.is_floating_point():
        drawn = draw(shape, generator)
        if value.dtype == torch.float16:
            drawn = drawn.clamp(-64, 64)  # leaves room below the largest half, 65504
    elif value.numel() == 0:
        drawn = torch.zeros(shape, device="cpu")
    else:
        known = value.detach().cpu().flatten()  # integers and booleans: may be indices, so only values of the example
        if value.dtype == torch.bool:
            known = torch.tensor([False, True], device="cpu")
        drawn = known[torch.randint(known.numel(), shape, generator=generator, device="cpu")]
    return drawn.to(device=value.device, dtype=value.dtype)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device="cpu")


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device="cpu") * 2 - 1


def _sparse(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device="cpu") * (
        torch.rand(shape, generator=generator, device="cpu") < 0.1
    )


def _large(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device="cpu") * 30


def _small(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device="cpu") / 30


def _constant(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    lead = (*shape[:2], *(1 for _ in shape[2:]))
    return torch.randn(lead, generator=generator, device="cpu").expand(shape).contiguous()


def _smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return values in [0, 1] that vary slowly in space, with a little noise, as pictures do."""
    if len(shape) != 4:
        return torch.rand(shape, generator=generator, device="cpu")
    coarse = torch.rand((*shape[:2], 5, 5), generator=generator, device="cpu")
    picture = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False)
    return (picture + 0.05 * torch.randn(shape, generator=generator, device="cpu")).clamp(0, 1)
