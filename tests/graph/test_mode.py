"""A part in training mode is refused where its mode changes what it computes, and passed over where it does not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnfold.errors import TrainingModeError
from bnfold.graph.mode import minds_training, require_eval
from tests.fold.support import Net


class Asks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if self.training else x


class AsksByText(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if getattr(self, "training") else x  # noqa: B009


class AsksInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sum(x * self.training for _ in range(2))  # type: ignore[return-value]


class HandsOn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=self.training)


class Inherits(HandsOn):
    pass


class AsksAnother(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _dropped(self, x)


class AsksAProperty(nn.Module):
    @property
    def scale(self) -> float:
        return 2.0 if self.training else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Wrapped(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if self.training else x


class Unseen(nn.Module):
    forward = len  # type: ignore[assignment]


class Quiet(nn.Module):
    """Is in training mode, and its code never reads training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(_twice(self.body(x)), 0.5, training=False)


class OwnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OwnDropout(nn.Dropout):
    pass


class OwnBlock(nn.Sequential):
    pass


def _dropped(module: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, module.training)


def _twice(x: Tensor) -> Tensor:
    return x * 2


def _with_hook() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * module.training,))
    return layer


def _with_forward_of_its_own() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = functools.partial(_dropped, layer)  # type: ignore[method-assign]
    return layer


def _spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)).parametrizations.weight[0]  # type: ignore[union-attr, index, return-value]


def _old_spectral() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(2, 2))


MINDS: dict[str, Callable[[], nn.Module]] = {
    "normalises by its batch": lambda: nn.BatchNorm2d(4),
    "normalises by its batch, synchronised": lambda: nn.SyncBatchNorm(4),
    "normalises by its batch, each instance": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "drops values at random": lambda: nn.Dropout(0.1),
    "drops values at random, channels": lambda: nn.Dropout2d(0.1),
    "drops values at random, alpha": lambda: nn.AlphaDropout(0.1),
    "drops values at random, a subclass": lambda: OwnDropout(0.1),
    "drops values at random, between layers": lambda: nn.LSTM(3, 3, 2, dropout=0.1),
    "drops values at random, of attention": lambda: nn.MultiheadAttention(4, 2, dropout=0.1),
    "draws its slopes at random": nn.RReLU,
    "treats padding in another way": lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0),
    "reads `training`": Asks,
    "reads `training`, by text": AsksByText,
    "reads `training`, in a generator": AsksInside,
    "reads `training`, to hand it on": HandsOn,
    "reads `training`, in a class before it": Inherits,
    "reads `training`, in a function": AsksAnother,
    "reads `training`, in a property": AsksAProperty,
    "reads `training`, in a wrapped forward": Wrapped,
    "reads `training`, in a parametrization": _spectral,
    "carries a hook that reads `training`": _with_hook,
    "carries a hook that reads `training`, of torch": _old_spectral,
    "holds a function that reads `training`": lambda: Net(lambda s, x: F.dropout(x, training=s.training)),
    "holds a function that reads `training`, a forward": _with_forward_of_its_own,
    "is of code that cannot be seen": Unseen,
    "is TorchScript, whose code is not looked into": lambda: torch.jit.script(nn.ReLU()),
}
DOES_NOT: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "convolution": lambda: nn.Conv2d(3, 4, 3),
    "a normalisation without running statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "an instance norm without running statistics": lambda: nn.InstanceNorm2d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "dropout of nothing": lambda: nn.Dropout(0.0),
    "a recurrent layer without dropout": lambda: nn.GRU(3, 3),
    "attention without dropout": lambda: nn.MultiheadAttention(4, 2),
    "slopes that cannot vary": lambda: nn.RReLU(0.2, 0.2),
    "a random pooling, as random in eval mode": lambda: nn.FractionalMaxPool2d(2, 3),
    "sequence": nn.Sequential,
    "list": lambda: nn.ModuleList([nn.Identity()]),
    "code that never asks": Quiet,
    "a layer of one's own": lambda: OwnLinear(2, 2),
    "a block of one's own": OwnBlock,
    "a function that never asks": lambda: Net(lambda s, x: _twice(x)),
    "a graph": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))),
    "a parametrization": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)).parametrizations.weight[0],  # type: ignore[union-attr, index, return-value]
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MINDS)
def test_what_minds_its_mode_is_refused_with_why(name: str) -> None:
    part = MINDS[name]()
    why = name.partition(",")[0] if not name.startswith("is TorchScript") else name
    assert minds_training(part) == why
    model = nn.Sequential(nn.Identity())
    model.add_module("part", part)
    with pytest.raises(TrainingModeError) as caught:
        require_eval("The model", model)
    assert f"part: {why}" in str(caught.value)
    assert str(caught.value).endswith("Call .eval() on it first.")
    part.eval()
    require_eval("The model", model)


@pytest.mark.parametrize("name", DOES_NOT)
def test_what_does_the_same_in_both_modes_is_passed_over(name: str) -> None:
    part = DOES_NOT[name]().train()
    assert minds_training(part) is None
    require_eval("The model", part)


def test_the_parts_of_a_container_are_asked_each() -> None:
    net: Any = Quiet()
    net.drop = nn.Dropout(0.5)
    with pytest.raises(TrainingModeError, match=r"\(drop: drops values at random\)"):
        require_eval("The model", net)


def test_the_model_itself_is_called_so() -> None:
    with pytest.raises(
        TrainingModeError, match=r"^The model is in training mode.*\(the model itself: reads `training`\)"
    ):
        require_eval("The model", Asks())
