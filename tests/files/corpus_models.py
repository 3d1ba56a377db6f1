"""Modules that carry more than a module carries, weights that do not fit, and options that do not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.files.cases import ACCESS, USAGE, Case, content
from tests.files.forge import NONE, module, program, saved, torch_zip

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
    def forward(self, x):
        return self.bn1(self.conv1(x))
net = Net()
number = 7
def broken():
    raise ValueError("no weights here")
def text():
    return "a model"
def with_argument(width):
    return Net()
"""


def layer(title: str, change: Callable[[Any], object], *says: str) -> Case:
    """Return the case of a saved layer after something was done to it."""

    def make() -> bytes:
        made = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.ReLU()).eval()
        change(made)
        return saved(made)

    return content(title, make, *says)


def weights(title: str, change: Callable[[dict[str, Any]], object], *says: str, code: int = 3, **options: Any) -> Case:
    """Return the case of a state_dict that belongs to NET after something was done to it."""

    def make(folder: Path, _marker: Path) -> Path:
        (folder / "net.py").write_text(NET)
        namespace: dict[str, Any] = {"__name__": "net"}
        exec(NET, namespace)
        state = dict(namespace["Net"]().state_dict())
        result = change(state)
        (folder / "weights.pt").write_bytes(saved(state if result is None else result))
        return folder / "weights.pt"

    return Case(title, make, code, says, {"model": "{folder}/net.py:Net"} | options)


def code_file(title: str, source: str | None, exit_code: int, *says: str, **options: Any) -> Case:
    """Return the case of an honest file beside a --code file with this source."""

    def make(folder: Path, _marker: Path) -> Path:
        if source is not None:
            (folder / "net.py").write_text(source)
        (folder / "model.pt").write_bytes(saved(nn.Linear(2, 2)))
        return folder / "model.pt"

    return Case(title, make, exit_code, says, options or {"code": ["{folder}/net.py"]})


def spec(title: str, source: str, exit_code: int, *says: str) -> Case:
    """Return the case of a SPEC as MODEL."""

    def make(folder: Path, _marker: Path) -> str:
        (folder / "net.py").write_text(NET)
        return source.format(folder=folder)

    return Case(title, make, exit_code, says)


def _set(target: Any, name: str, value: Any) -> None:
    target.__dict__[name] = value


def _endless(model: Any) -> None:
    model._modules["again"] = model


def _deep(model: Any) -> None:
    sys.setrecursionlimit(20_000)  # pickling follows them by recursion; the fixture of the test puts it back
    for _ in range(300):
        model._modules["0"] = nn.Sequential(model._modules["0"])


class Unknown(nn.Module):
    """A module of a class that nobody named."""


MODULES = (
    layer("forward replaced", lambda m: _set(m[0], "forward", nn.Identity()), "`forward`"),
    layer("__call__ impl replaced", lambda m: _set(m[0], "_call_impl", nn.Identity()), "`_call_impl`"),
    layer("_conv_forward replaced", lambda m: _set(m[0], "_conv_forward", nn.Identity()), "`_conv_forward`"),
    layer("eval replaced", lambda m: _set(m, "eval", nn.Identity()), "`eval`"),
    layer("a property replaced", lambda m: _set(m, "named_modules", 3), "`named_modules`"),
    layer("dump_patches replaced", lambda m: _set(m, "dump_patches", nn.Identity()), "`dump_patches`"),
    layer("a forward hook", lambda m: m[0]._forward_hooks.update({0: nn.Identity()}), "hooks"),
    layer("a forward pre-hook", lambda m: m[0]._forward_pre_hooks.update({0: nn.Identity()}), "hooks"),
    layer("a backward hook", lambda m: m[0]._backward_hooks.update({0: nn.Identity()}), "hooks"),
    layer("a state_dict hook", lambda m: m[0]._state_dict_hooks.update({0: nn.Identity()}), "hooks"),
    layer("hooks that are no dict", lambda m: _set(m[0], "_forward_hooks", nn.Identity()), "hooks"),
    layer("a module that contains itself", _endless, "contains itself"),
    layer("300 modules, one in the other", _deep, "levels deep"),
    layer("a text for a module", lambda m: m._modules.update({"1": "text"}), "among the modules"),
    layer("a module for a parameter", lambda m: m[0]._parameters.update(weight=nn.ReLU()), "among the parameters"),
    layer("a tensor for a parameter", lambda m: m[0]._parameters.update(weight=torch.ones(1)), "among the parameters"),
    layer("a name with a dot", lambda m: m._modules.update({"a.b": nn.ReLU()}), "`a.b`"),
    layer("no name", lambda m: m._modules.update({"": nn.ReLU()}), "uses the name"),
    layer("one name twice", lambda m: m[0]._buffers.update(weight=torch.ones(1)), "`weight`"),
    layer("training is a text", lambda m: _set(m[1], "training", "yes"), "neither training nor eval"),
    layer("a sparse parameter", lambda m: _set(m[0], "x", torch.eye(2).to_sparse()), "sparse"),
    layer("a meta parameter", lambda m: m[0].to("meta"), "meta"),
    layer("a lazy layer", lambda m: m.append(nn.LazyLinear(3)), "lazy layer"),
    layer("weight norm by hooks", lambda m: _weight_norm(m[0]), "remove_weight_norm"),
    layer("a function as an attribute", lambda m: _set(m, "act", nn.functional.relu), "`torch.nn.functional.relu`"),
    layer("a builtin as an attribute", lambda m: _set(m, "act", print), "`builtins.print`"),
    layer("an optimizer as an attribute", lambda m: _set(m, "o", torch.optim.SGD(m.parameters(), 0.1)), "an optimizer"),
    content("a class that nobody named", lambda: saved(Unknown()), "Unknown", "--code FILE.py"),
    content("a GraphModule", lambda: saved(torch.fx.symbolic_trace(nn.ReLU())), "GraphModule", "source code"),
    content("no state at all", torch_zip(program(b"ctorch.nn.modules.activation\nReLU\n)\x81")), "incomplete"),
    content(
        "parameters that are None", torch_zip(program(module("activation.ReLU", _parameters=NONE))), "no parameters"
    ),
    content("modules that are None", torch_zip(program(module("container.Sequential", _modules=NONE))), "no modules"),
)


def _weight_norm(conv: Any) -> None:
    conv._forward_pre_hooks[0] = torch.nn.utils.weight_norm.__globals__["WeightNorm"]("weight", 0)


STATES = (
    weights("weights without --model", lambda s: None, "--model", model=None),
    weights(
        "a key missing", lambda s: {key: s[key] for key in s if key != "conv1.weight"}, "1 missing (`conv1.weight`)"
    ),
    weights("a key too many", lambda s: s.update(extra=torch.ones(1)), "1 unexpected (`extra`)"),
    weights(
        "a key misspelt",
        lambda s: s.update({"conv_1.weight": s.pop("conv1.weight"), "zzz": torch.ones(1)}),
        "1 missing (`conv1.weight`)",
        "2 unexpected (`conv_1.weight`, `zzz`)",
    ),
    weights("another shape", lambda s: s.update({"bn1.weight": torch.ones(5)}), "1 of another shape", "[5]", "[4]"),
    weights("another net's weights", lambda s: {f"layer{n}.weight": torch.ones(1) for n in range(500)}, "498 more"),
    weights("a text among the weights", lambda s: {"state_dict": {**s, "note": "hello"}}, "is a dict with"),
    weights("no weights in the dict", lambda s: {"epoch": 3, "lr": 0.1}, "`epoch`"),
    weights("an empty dict", lambda s: {"state_dict": {}}, "is a dict with"),
    weights("a list", lambda s: [s], "holds a list"),
    weights("a tensor", lambda s: s["bn1.weight"], "holds a Tensor"),
    weights("a key that is not there", lambda s: None, "has no key `emma`", code=USAGE, key="emma"),
    weights("a key that holds a number", lambda s: {"epoch": 3, **s}, "no weights", key="epoch"),
    weights("many keys of a megabyte", lambda s: {f"{n}" * 10**6: torch.ones(1) for n in range(10, 15)}, "unexpected"),
    weights("keys with escapes", lambda s: {"\x1b[31m\n::error::": torch.ones(1)}, r"\x1b[31m\x0a::error::"),
    weights("a numpy number", lambda s: {"state_dict": s, "best": torch.ones(1).numpy()[0]}, "NumPy"),
)

OPTIONS = (
    code_file("--code that is not there", None, ACCESS, "There is no file"),
    code_file("--code that is no Python", "def f(:\n", USAGE, "SyntaxError", "line 1"),
    code_file("--code that fails", "import torch\n1 / 0\n", USAGE, "ZeroDivisionError", "line 2"),
    code_file("--code that exits", "raise SystemExit(0)", USAGE, "SystemExit"),
    code_file("--code with zero bytes", "a\0b", USAGE, "fails when run"),
    code_file("--model that is misspelt", NET, USAGE, "is not the name of a model", model="net"),
    code_file("--model that is not there", NET, USAGE, "no `Nett`", "`Net`", model="{folder}/net.py:Nett"),
    spec("spec: no such name", "{folder}/net.py:Nett", USAGE, "no `Nett`", "`Net`"),
    spec("spec: a number", "{folder}/net.py:number", USAGE, "of type int"),
    spec("spec: fails", "{folder}/net.py:broken", USAGE, "no weights here"),
    spec("spec: makes a text", "{folder}/net.py:text", USAGE, "makes a str"),
    spec("spec: wants an argument", "{folder}/net.py:with_argument", USAGE, "without arguments"),
    spec("spec: no such file", "{folder}/gone.py:Net", ACCESS, "There is no file"),
    spec("spec: no such package", "no_such_package_at_all:Net", USAGE, "no Python module `no_such_package_at_all`"),
    spec("spec: no such module", "torch.no_such_module:Net", USAGE, "no Python module `torch.no_such_module`"),
)

CASES = MODULES + STATES + OPTIONS
