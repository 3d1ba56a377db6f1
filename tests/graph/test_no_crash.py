"""What hands a value to torch's C code, or to numpy's: the fold is right, or refuses in a sentence; nothing crashes.

All networks run in one process, which :func:`tests.graph.questions.survive` starts anew behind a network
that ends it.
"""

from __future__ import annotations

import ctypes
import pickle
import re
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.graph.questions import EXAMPLE, RIGHT, Asks, Question, entering, judge, survive, work

SHAPES_TRIED = (EXAMPLE, (3, 3, 32, 32))
NETWORKS: dict[str, Question] = {}
hands = entering(NETWORKS)


@hands("torch.as_tensor(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(torch.as_tensor(s.features(x)))


@hands("torch.as_tensor(x, dtype=..., device=...)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(torch.as_tensor(x, dtype=torch.float64, device="cpu"))


@hands("torch.as_tensor(a size)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * torch.as_tensor(x.shape[0])


@hands("torch.tensor(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(torch.tensor(s.features(x)))


@hands("torch.tensor([a number of y])")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * torch.tensor([y.mean(), y.std()], dtype=y.dtype).sum()


@hands("torch.tensor of a size in a nested list")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * torch.tensor([[x.shape[0]], [x.shape[2]]]).sum()


@hands("torch.asarray(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(torch.asarray(s.features(x)))


@hands("torch.FloatTensor(x)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(torch.FloatTensor(x.float()).double())


@hands("torch.DoubleTensor(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(torch.DoubleTensor(s.features(x)))


@hands("torch.Tensor(x)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(torch.Tensor(x.float()).double())


@hands("torch.Tensor(a size)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) + torch.Tensor(x.shape[0], 1, 1, 1).zero_()


@hands("torch.LongTensor([sizes])")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * torch.LongTensor([x.shape[2], x.shape[3]]).max()


@hands("x.new(y), y.new_tensor(...)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(x.new(y)) + y.new_tensor([1.0, x.shape[2]]).sum()


@hands("z.data = y")
def _(s: Asks, x: Tensor) -> Tensor:
    z = torch.empty(0, dtype=x.dtype)
    z.data = s.features(x)
    return s.head(z)


@hands("y.data = x")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    y.data = y.data * 2
    return s.head(y)


@hands("z.set_(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    z = torch.empty(0, dtype=x.dtype)
    z.set_(s.features(x))
    return s.head(z)


@hands("z.copy_(y), z[...] = y")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    z, w = torch.empty_like(y), torch.empty(y.shape, dtype=y.dtype)
    z.copy_(y)
    w[...] = z
    return s.head(w)


@hands("a constant tensor written to with y")
def _(s: Asks, x: Tensor) -> Tensor:
    sums = torch.zeros(4, dtype=x.dtype)
    sums[1] = s.features(x).sum()
    sums[2:] = x.shape[0]
    return s.features(x) + sums.sum()


@hands("torch.full((1,), a number of y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * torch.full((1,), y.mean(), dtype=y.dtype)


@hands("torch.full of sizes")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * torch.full((x.shape[0], 1, 1, 1), x.shape[2], dtype=x.dtype)


@hands("torch.empty(a number of y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y + torch.ones(int(y.abs().mean() * 0) + 1, dtype=y.dtype)


@hands("torch.arange(a number of y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * torch.arange((y.abs().sum() * 0 + 3).long()).sum()


@hands("torch.Size([a size])")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x).reshape(torch.Size([x.shape[0], 6, -1]))


def scaled(x: Tensor, factor: int) -> Tensor:
    return x * factor


def joined(xs: list[Tensor]) -> Tensor:
    return torch.cat(xs, 1)


_SCRIPTED: dict[Any, Any] = {}


def scripted(function: Any) -> Any:
    if function not in _SCRIPTED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _SCRIPTED[function] = torch.jit.script(function)
    return _SCRIPTED[function]


@hands("a jit function of y and a size")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(scripted(scaled)(s.features(x), x.shape[2]))


@hands("a jit function of a list of values")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return scripted(joined)([y, x, s.head(y)])


@hands("a traced jit function")
def _(s: Asks, x: Tensor) -> Tensor:
    if "traced" not in _SCRIPTED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _SCRIPTED["traced"] = torch.jit.trace(torch.sigmoid, torch.zeros(2))
    return s.head(_SCRIPTED["traced"](s.features(x)))


@hands("torch.from_numpy(y.numpy())")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(torch.from_numpy(s.features(x).numpy()))


@hands("x.numpy() and a sum in numpy")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * float(x.numpy().sum())


@hands("x.cpu().detach().numpy().shape")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * x.cpu().detach().numpy().shape[0]


@hands("y.__array__()")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) + torch.from_numpy(x.__array__()).mean()


@hands("np.asarray(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y + float(np.asarray(y).max())


@hands("np.array([y, y]), np.sqrt(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y + torch.as_tensor(np.array([y, y])).sum(0) + torch.as_tensor(np.sqrt(y.abs()))


@hands("a numpy number times y")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * np.float64(2.0) + float(np.sqrt(x.shape[2]))


@hands("y.tolist()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * torch.tensor(y.mean((0, 2, 3)).tolist(), dtype=y.dtype).view(1, -1, 1, 1)


@hands("float(y.mean()), y.mean().item()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * float(y.mean()) + y.std().item()


@hands("a format of y's numbers, repr(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * (len(f"{y.mean():.3f}") + len(repr(y[0, 0, 0, :2])))


@hands("y.untyped_storage().nbytes()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * (y.untyped_storage().nbytes() / y.numel() / y.element_size())


@hands("x.data_ptr() == y.data_ptr()")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y if x.data_ptr() == y.data_ptr() else s.head(y)


@hands("y.storage_offset() and torch.as_strided")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)[:, 1:]
    size = (y.shape[0], 2, 4, 4)
    return torch.as_strided(y, size, y.stride(), y.storage_offset())


@hands("ctypes reads at x.data_ptr()")
def _(s: Asks, x: Tensor) -> Tensor:
    address = x.data_ptr()
    return s.features(x) * (ctypes.c_double.from_address(address).value if address else 0.0)


@hands("pickle.dumps(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(pickle.loads(pickle.dumps(s.features(x))))


@hands("weakref.ref(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return s.head(weakref.ref(y)())


@hands("torch.from_dlpack(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(torch.from_dlpack(s.features(x)))


@hands("torch.cat of as_tensor of values and a list of sizes")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return torch.cat([torch.as_tensor(y), s.head(torch.tensor(y))], 1) * torch.cat([torch.tensor([x.shape[0]])])


@hands("torch.stack of sizes")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x) * torch.stack([torch.tensor(size) for size in x.shape]).sum()


@hands("y[indices made from sizes]")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.features(x)[:, torch.tensor([0, 2]), :, torch.arange(x.shape[3] // 2)[:, None]]


@hands("y[y > 0], a mask")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    z = y.clone()
    z[y > 0] = 1.0
    return z + y[y > 0].mean()


@hands("torch.nonzero(y)")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return y * len(torch.nonzero(y > 0))


class Halving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.size = size
        return x / size

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.size, None


@hands("a custom autograd.Function with a size")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(Halving.apply(s.features(x), x.shape[2]))


@hands("checkpoint, with and without re-entrance")
def _(s: Asks, x: Tensor) -> Tensor:
    y = torch.utils.checkpoint.checkpoint(s.features, x, use_reentrant=False)
    return torch.utils.checkpoint.checkpoint(s.head, y, use_reentrant=True)


@hands("torch.func.functional_call")
def _(s: Asks, x: Tensor) -> Tensor:
    doubled = {name: value * 2 for name, value in s.head.named_parameters()}
    return torch.func.functional_call(s.head, doubled, (s.features(x),))


@hands("torch.vmap and torch.func.grad")
def _(s: Asks, x: Tensor) -> Tensor:
    y = s.features(x)
    return torch.vmap(torch.sin)(y) + torch.func.grad(lambda z: (z**2).sum())(y)


@hands("torch.nested.nested_tensor")
def _(s: Asks, x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(s.features(x))).to_padded_tensor(0.0)


@hands("torch.compile of a function")
def _(s: Asks, x: Tensor) -> Tensor:
    return s.head(torch.compile(torch.sigmoid, backend="eager")(s.features(x)))


@hands("a torch.device context, torch.set_grad_enabled")
def _(s: Asks, x: Tensor) -> Tensor:
    with torch.device("cpu"), torch.set_grad_enabled(False):
        return s.features(x) + torch.ones(x.shape[3], dtype=x.dtype)


@hands("torch._C._nn and torch.ops called by name")
def _(s: Asks, x: Tensor) -> Tensor:
    y = torch._C._nn.gelu(s.features(x))
    return torch.ops.aten.add.Tensor(y, torch.ops.aten.mean.dim(x, [1], True))


@hands("torch.embedding of what came out of an argmax")
def _(s: Asks, x: Tensor) -> Tensor:
    return F.embedding(s.features(x).argmax(1), s.head.weight.flatten(1))


# --- the test ----------------------------------------------------------------------------------------------------


def unreadable(text: str) -> str | None:
    """Say why a message is not for reading, or return None."""
    if "\n" in text or "Traceback" in text:
        return "it has several lines"
    if re.search(r"0x[0-9a-f]{6}", text):
        return "it shows an address"
    if not text.endswith(".") or len(text) > 600:
        return "it does not end, or is too long"
    return None


_LONG = pytest.mark.long  # without inputs, each network is searched for some first: as slow, and no other code


@pytest.mark.parametrize("modes", [("given", "symbolic"), pytest.param(("found",), marks=_LONG)])
def test_what_reaches_c_code_is_right_or_is_refused_in_a_sentence(modes: tuple[str, ...]) -> None:
    answers = survive("tests.graph.test_no_crash", [f"{mode}: {text}" for mode in modes for text in NETWORKS])
    problems = {job: answer for job, answer in answers.items() if answer != RIGHT}
    assert not problems, "\n".join(f"{job}\n    {answer}" for job, answer in problems.items())


def test_what_is_tried_are_more_than_forty_ways() -> None:
    assert len(NETWORKS) > 40


def _answer(job: str) -> str:
    """Return ``right``, also for a readable refusal; or what is not so."""
    mode, _, text = job.partition(": ")
    for shape, outcome in judge(NETWORKS[text], mode, SHAPES_TRIED).items():
        if outcome.kind == "refused":
            fault = unreadable(outcome.detail)
            if fault:
                return f"refused, and {fault}: {outcome.detail}"
        elif outcome.kind != RIGHT:
            return f"{outcome.kind} at {shape}: {outcome.detail}"
    return RIGHT


if __name__ == "__main__":
    work(_answer)
