"""What :mod:`bnfold.report.equation` found, as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from bnfold.fold.decision import Decision
from bnfold.report.bars import bar, spread
from bnfold.report.chain import Link, render_chain
from bnfold.report.console import plain_table
from bnfold.report.equation import Explanation
from bnfold.report.escape import visible

__all__ = ["render_explanation"]


def render_explanation(
    found: Explanation,
    decisions: tuple[Decision, ...],
    chains: Sequence[Sequence[Link]] = (),
    *,
    plain: bool = False,
) -> Iterator[Table | Text]:
    """Yield the way of the affine, the equation, its numbers, the roundings, training mode, and the ways of writing it.

    Args:
        found: about the layer.
        decisions: one for each of its calls.
        chains: for each decision, the calls that the affine moves along.
        plain: draw in ASCII.
    """
    name = visible(found.name)
    yield Text(f"{name}: {visible(found.kind)}, {found.channels} channels, eps {found.eps:g}", style="bold")
    for number, decision in enumerate(decisions):
        yield Text(visible(decision.detail))
        if number < len(chains) and chains[number]:
            yield Text()
            yield from render_chain(chains[number], plain=plain)
    if not decisions:
        yield Text("The model never calls it.")
    yield Text()
    yield Text("In eval mode, for channel c and every value x of it:", style="bold")
    yield Text(
        "  y = (x - running_mean[c]) / sqrt(running_var[c] + eps) * weight[c] + bias[c] = scale[c] * x + shift[c]"
    )
    yield Text()
    yield _numbers(found, plain=plain)
    rest = found.channels - len(found.sample)
    negative = f"{found.negative} of {found.channels} scales are negative"
    zero = f", {found.zero} are 0" if found.zero else ""
    yield Text(f"{f'{rest} more channels; ' if rest else ''}{negative}{zero}.")
    if found.channels > 1:
        low, high = min(found.scales), max(found.scales)
        heights, mark = spread(found.scales, plain=plain)
        yield Text()
        yield Text(f"The {found.channels} scales, from {low:.3g} to {high:.3g}:", style="bold")
        yield Text(f"  {heights}")
        yield Text(f"  {mark} 0", style="dim")
    yield Text()
    yield Text("In float32, bit for bit:", style="bold")
    yield Text("  alpha = rsqrt(running_var + eps) * weight      each of the three operations rounds")
    yield Text("  beta  = fma(-running_mean, alpha, bias)        rounds once")
    yield Text("  y     = fma(x, alpha, beta)                    rounds once")
    yield Text()
    yield Text("In training mode it is another function:", style="bold")
    yield Text("  y = (x - mean(batch)) / sqrt(biased_variance(batch) + eps) * weight + bias")
    yield Text(f"  {_update(found.momentum)}")
    yield Text(
        "  (biased: divided by the number of values n; what goes into running_var is the unbiased one, by n - 1)"
    )
    yield Text()
    yield Text("How far other ways of writing it are from the layer:", style="bold")
    yield _ways(found)
    yield Text(f"Measured on {found.measured_on}.")
    yield Text(
        "One ulp is the step to the next float32 number. Near zero the steps are tiny, and so a difference that is"
    )
    yield Text("tiny too counts many of them; 'differ' is the share of elements that are not the same number.")


def _numbers(found: Explanation, *, plain: bool) -> Table:
    columns = ("channel", "running_mean", "running_var", "weight", "bias", "scale", "shift")
    table = plain_table(*columns, "scale, drawn", numbers=columns)
    largest = max(abs(channel.scale) for channel in found.sample)
    for channel in found.sample:
        values = (channel.mean, channel.variance, channel.weight, channel.bias)
        cells = ["none" if value is None else f"{value:.7g}" for value in values]
        drawn = Text(bar(channel.scale, largest, plain=plain), style="yellow" if channel.scale <= 0 else "cyan")
        scale = Text(f"{channel.scale:.9g}", style="yellow" if channel.scale <= 0 else "")
        table.add_row(str(channel.index), *cells, scale, f"{channel.shift:.9g}", drawn)
    return table


def _ways(found: Explanation) -> Table:
    numbers = ("99 % within, ulp", "most, ulp", "most, absolute", "differ")
    table = plain_table("way", *numbers, "", numbers=numbers)
    for way in found.ways:
        table.add_row(
            way.formula,
            _count(way.usual_ulps),
            Text(_count(way.largest_ulps), style="green" if way.largest_ulps == 0 else ""),
            "0" if way.largest == 0 else f"{way.largest:.1e}",
            f"{way.differing:.1%}",
            Text(way.remark, style="dim"),
        )
    return table


def _count(ulps: int) -> str:
    return f"{ulps:,}" if ulps < 10_000_000 else f"{ulps:.1e}"


def _update(momentum: float | None) -> str:
    if momentum is None:
        return "running_mean, running_var: the averages over all batches so far"
    return f"running_mean, running_var: {1 - momentum:g} of the old value plus {momentum:g} of the batch's"
