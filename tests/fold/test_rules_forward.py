"""Each row of the table of rules forward: a BatchNorm before the op goes through it into the weights after it.

The ops are those of ``test_rules.py``, in every spelling: ``bn -> op -> conv`` (or ``-> fc``), where the BatchNorm
reads the model's input and so has nowhere to go but forward.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnfold import ops as calls
from bnfold.fold.rules import RULES
from bnfold.graph.facts import Facts
from tests.fold.support import Net, double, folds, run, set_affine, values
from tests.fold.test_rules import CHANNELS, CONV, NORM, ROWS, Row

STAYS = {  # legal backward only
    "over-batch": "the parts are joined along another dimension, and hold different affines",
    "over-space": "the same",
    "flatten-batch": "the channels are merged with the batch",
    "in-place": "without the BatchNorm, the model's input would be written to",
}
ALIKE = {calls.PixelShuffle: 4, calls.PixelUnshuffle: 1, calls.Reshape: 1}  # where it is not as backward


def forward_rows() -> list[Row]:
    rows = [row for row in ROWS if row.op is not calls.Add and not any(f"-{name}-" in row.name for name in STAYS)]
    rows = [replace(row, alike=ALIKE.get(row.op, row.alike)) for row in rows]
    twice: Any = {"op": calls.Add, "dims": 2, "name": ""}
    rows.append(Row(**{**twice, "name": "Add-of-itself"}, apply=lambda s, y: y + y.flip(2)))
    rows.append(Row(**{**twice, "name": "Add-minus-itself"}, apply=lambda s, y: y - y.flip(2)))
    return rows


def built(case: Row, seed: int) -> tuple[nn.Module, Tensor]:
    """Return ``bn -> op -> a layer with weights`` with the op's conditions met, and an input."""
    shape = (2, CHANNELS, *[10] * case.dims) if case.dims else (2, CHANNELS, 5)
    x = values(*shape, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        parts = case.parts()
        if "other" in parts:  # of an input that has another number of channels there
            parts["other"] = CONV[case.dims](CHANNELS, CHANNELS, 1)
        probe = double(Net(case.apply, x=None, **parts))
        probe.x = x
        y = run(probe, x)
        after = nn.Linear(y.shape[-1], 3) if y.ndim == 2 or not case.dims else CONV[y.ndim - 2](y.shape[1], 3, 1)

    def forward(s: Any, x: Tensor) -> Tensor:
        s.x = x
        return s.after(case.apply(s, s.bn(x)))  # type: ignore[no-any-return]

    norm = NORM[case.dims or 1](CHANNELS)
    negative = 0.0 if case.positive else 0.5
    net = double(Net(forward, bn=norm, after=after, x=None, **parts), seed=seed, negative=negative)
    if case.alike > 1:
        for tensor in (net.bn.running_mean, net.bn.running_var, net.bn.weight.data, net.bn.bias.data):
            tensor.copy_(tensor[:: case.alike].repeat_interleave(case.alike))
    if case.no_shift:
        set_affine(net.bn, shift=0.0)
    return net, x


@pytest.mark.parametrize("case", forward_rows(), ids=lambda case: case.name)
def test_a_batchnorm_goes_forward_through_the_op_and_nothing_changes(case: Row) -> None:
    net, x = built(case, zlib.crc32(case.name.encode()))

    folding = folds(net, x)

    (decision,) = folding.plan
    assert (decision.action, decision.direction) == ("fold", "forward"), decision.detail
    assert decision.into == ("after",)
    facts = Facts(folding.captured)
    crossed = [node for node in facts.index if type(facts.call(node)) is case.op]
    names = {str(node.target) if node.op == "call_module" else node.name for node in crossed}
    assert names & set(decision.through), f"{decision.through} does not name {names}"


def test_every_rule_forward_has_a_row_here() -> None:
    elsewhere = {calls.TaughtPassing}  # a module of the user's: tests/test_extend.py
    assert set(RULES) - elsewhere - {case.op for case in forward_rows()} == set()
