"""Which line of the model calls a BatchNorm: that of the model, and not the one in a layer library that all share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bnfold.fold.decision import Decision

__all__ = ["called_at"]


def called_at(decisions: Sequence[Decision], lines: Mapping[str, Sequence[str]]) -> list[Decision]:
    """Return the decisions with the line that tells each call from the others.

    A line that more than half of several BatchNorms share is that of a layer library, or of a block of layers (``y =
    self.bn(self.conv(x))``). Where the lines that lead to it differ, the next of these is named instead.

    Args:
        decisions: of one graph.
        lines: for the name of a call's node, the lines of the user's code that lead to it, the innermost first.
    """
    left = [list(lines.get(decision.site, ())) for decision in decisions]
    names = {decision.batchnorm for decision in decisions}
    while True:
        of_line: dict[str, list[int]] = defaultdict(list)
        for number, chain in enumerate(left):
            if chain:
                of_line[chain[0]].append(number)
        shared = next((numbers for numbers in of_line.values() if _says_little(numbers, left, len(names))), None)
        if shared is None:
            break
        for number in shared:
            if len(left[number]) > 1:
                left[number].pop(0)
    return [
        decision if not chain else replace(decision, source=chain[0])
        for decision, chain in zip(decisions, left, strict=True)
    ]


def _says_little(numbers: Sequence[int], chains: Sequence[Sequence[str]], layers: int) -> bool:
    following = {chains[number][1] for number in numbers if len(chains[number]) > 1}
    return len(numbers) > max(1, layers // 2) and len(following) > 1
