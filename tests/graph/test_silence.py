"""What torch logs and prints of its failures stays inside: the caller hears bnfold's sentence, or nothing."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from torch import nn

from bnfold.capture.ways import capture
from bnfold.fold.api import plan
from bnfold.graph.facts import Facts
from tests.fold.support import Net, double, folds, values

ROOT = Path(__file__).parents[2]

ANOTHER_BATCH = """
import torch, bnfold
from torch import nn

class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)).view(2, 4, 6, 6).flatten(1)

print(bnfold.plan(FixedBatch().eval(), torch.zeros(2, 3, 8, 8)).summary)
"""
NO_EXPORT = ANOTHER_BATCH.replace("(2, 3, 8, 8))", "(2, 3, 8, 8), capture='export')")
NO_CAPTURE = """
import torch, bnfold
from torch import nn

class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return y[:, : int(y.sum().abs()) % 3 + 1]

try:
    bnfold.plan(Decides().eval(), torch.zeros(2, 3, 8, 8))
except bnfold.CaptureError as error:
    print("asks for the number" in str(error) and len(str(error)) < 400)
"""


PROGRAMS = {"another batch": ANOTHER_BATCH, "no export": NO_EXPORT, "no capture": NO_CAPTURE}


@pytest.fixture(scope="module")
def heard() -> dict[str, list[str]]:
    """What each program printed, on either stream: they run one after the other in a process of their own."""
    mark = "import sys\nfor stream in (sys.stdout, sys.stderr): print('== next', file=stream, flush=True)\n"
    run = subprocess.run(
        [sys.executable, "-c", mark.join(["", *PROGRAMS.values()])],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    said, failed = (stream.split("== next\n")[1:] for stream in (run.stdout, run.stderr))
    return {name: list(both) for name, both in zip(PROGRAMS, zip(said, failed, strict=True), strict=True)}


@pytest.mark.parametrize(
    ("program", "says"), [("another batch", "{'fold': 1"), ("no export", "{'fold': 1"), ("no capture", "True")]
)
def test_a_failure_inside_torch_is_not_heard(heard: dict[str, list[str]], program: str, says: str) -> None:
    said, failed = heard[program]
    assert said.startswith(says), failed
    assert failed == ""
    assert said.count("\n") == 1


def test_shapes_are_known_up_to_where_another_batch_fails() -> None:
    model = double(Net(lambda s, x: s.bn(s.conv(x)).view(2, 4, 36), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    captured = capture(model, values(2, 3, 8, 8))
    facts = Facts(captured)
    known = {node.name: facts.shapes(node) for node in facts.index}
    assert known["conv"] == ((2, 4, 6, 6), (3, 4, 6, 6))
    assert known["view"] == ((2, 4, 36),)
    assert [d.action for d in folds(model, values(2, 3, 8, 8)).plan] == ["fold"]


def test_a_warning_of_the_caller_s_own_is_heard_after() -> None:
    plan(double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), values(2, 3, 8, 8))
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
