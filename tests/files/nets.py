"""A network in a file of its own, saved as if from anywhere."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import torch
from torch import nn

NET = """
import torch
from torch import nn

class Block(nn.Module):
    expansion = 4
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2)
    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.expansion = 3
        self.norm_layer = nn.BatchNorm2d
        self.settings = {"width": 2, "names": ["a", ("b", 1.5)], 3: None}
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(2, 1, 1))
        self.scale.no_weight_decay = True
        self.register_buffer("table", torch.arange(6).reshape(2, 3).t())
        self.register_buffer("halves", torch.ones(2, dtype=torch.bfloat16), persistent=False)
    def forward(self, x):
        for block in self.blocks:
            x = block(x) * self.scale
        return x

def small():
    return Net()

net = Net()
"""


def make_net(module_name: str) -> tuple[types.ModuleType, nn.Module]:
    """Return a Net whose classes say that they come from ``module_name``."""
    module = types.ModuleType(module_name)
    exec(compile(NET, "<net>", "exec"), module.__dict__)
    torch.manual_seed(5)
    net: nn.Module = module.small()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 2.0) if "running_var" in name else nn.init.normal_(value)
    return module, net


def code_of(model: nn.Module) -> Path:
    return Path(str(sys.modules[type(model).__module__].__file__))


def assert_same(loaded: nn.Module, original: nn.Module) -> None:
    x = torch.randn(2, 2, 5, 5)
    assert loaded.state_dict().keys() == original.state_dict().keys()
    for (name, mine), theirs in zip(loaded.state_dict().items(), original.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.dtype == theirs.dtype
        assert mine.stride() == theirs.stride()
    assert torch.equal(loaded.eval()(x), original.eval()(x))
