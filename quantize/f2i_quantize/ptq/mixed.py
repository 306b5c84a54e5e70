"""``w8a8-mixed``: which layers stay float, so that the output reaches a wanted PSNR at the least cost in latency.

Cost is the share of multiply-adds left in float. The order is greedy: the unit next left float is the one whose quantization noise, taken away, gains the
most dB per multiply-add, noise of different units being taken as independent (their powers add). How many are needed is then found by measuring sets, not by
adding up; and units that the measured output can do without are quantized again, the most costly first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from f2i_runtime.errors import UsageError

from f2i_quantize.ptq.calibrate import Progress
from f2i_quantize.ptq.recipe import Recipe, Rule
from f2i_quantize.ptq.sensitivity import OutputError, Unit, Workbench

CURVE_POINTS = 6
"""Sets measured besides those that the search needs, spread over the order."""
MOST_TAKEN_BACK = 16
"""Units for which it is measured whether the output can do without them."""


@dataclass(frozen=True)
class Choice:
    """What stays float, and how that was found."""

    units: tuple[Unit, ...]
    record: dict[str, Any]
    """``target_psnr_db``, ``psnr_db``, ``macs_share`` (in float), ``layers``, ``curve``: points with ``units``, ``macs_share``, ``predicted_psnr_db``, ``psnr_db``."""


def greedy_order(units: Sequence[Unit], errors: Mapping[str, OutputError], together: float) -> tuple[list[Unit], list[float]]:
    """Units in the order in which they are left float, and the predicted error power after each (from none left float on).

    ``together``: measured error power with all quantized, to which the units' own are scaled.
    """
    alone = sum(errors[u.name].mse for u in units)
    power = {u.name: errors[u.name].mse * together / alone if alone else 0.0 for u in units}
    rest, order, left = list(units), [], [together]
    while rest:
        best = max(rest, key=lambda u: _gain_db(left[-1], power[u.name]) / max(1, u.macs))
        rest.remove(best)
        order.append(best)
        left.append(max(0.0, left[-1] - power[best.name]) if rest else 0.0)
    return order, left


def _gain_db(power: float, taken: float) -> float:
    if power <= 0:
        return 0.0
    # What is left is never taken as less than a thousandth: predictions are not that good.
    return -10 * math.log10(max(1e-3, 1 - taken / power))


def choose(
    bench: Workbench, units: Sequence[Unit], errors: Mapping[str, OutputError], target_psnr: float, total_macs: int, progress: Progress
) -> Choice:
    """The units to leave float for ``target_psnr`` dB on the tiles of ``bench``. ``total_macs``: of all layers, float ones too.

    Raises UsageError when the layers that the recipe leaves no choice about keep the output below the target.
    """
    everything = frozenset(layer for unit in units for layer in unit.layers)
    measured: dict[int, OutputError] = {}
    order, predicted = greedy_order(units, errors, bench.error(everything).mse)

    def at(count: int) -> OutputError:
        if count not in measured:
            measured[count] = bench.error(everything - {layer for unit in order[:count] for layer in unit.layers})
            progress("trade-off", len(measured), len(measured) + 1)
        return measured[count]

    def reached(error: OutputError) -> bool:
        psnr = error.psnr_db()
        return psnr is None or psnr >= target_psnr

    if not reached(at(len(order))):
        raise UsageError(
            f"target {target_psnr:g} dB: with every layer of the recipe's choice in float the output has {at(len(order)).psnr_db():.1f} dB"
        )
    low, high = -1, len(order)
    guess = next(k for k, power in enumerate(predicted) if reached(OutputError(power, 0.0)))
    for count in (guess, guess - 2, guess + 2):  # the prediction is tried on both sides; what remains is halved
        if low < count < high:
            low, high = (low, count) if reached(at(count)) else (count, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(at(middle)) else (middle, high)
    chosen = order[:high]
    error = at(high)
    for unit in sorted(chosen, key=lambda u: -u.macs)[:MOST_TAKEN_BACK]:
        without = [u for u in chosen if u is not unit]
        tried = bench.error(everything - {layer for u in without for layer in u.layers})
        if reached(tried):
            chosen, error = without, tried
    for k in range(CURVE_POINTS + 1):
        at(round(k * len(order) / CURVE_POINTS))
    progress("trade-off", len(measured), len(measured))
    record = {
        "target_psnr_db": target_psnr,
        "psnr_db": error.psnr_db(),
        "macs_share": sum(u.macs for u in chosen) / max(1, total_macs),
        "layers": [layer for unit in chosen for layer in unit.layers],
        "curve": [
            {
                "units": k,
                "macs_share": sum(u.macs for u in order[:k]) / max(1, total_macs),
                "predicted_psnr_db": OutputError(predicted[k], 0.0).psnr_db(),
                "psnr_db": measured[k].psnr_db() if k in measured else None,
            }
            for k in range(len(order) + 1)
        ],
    }
    return Choice(tuple(chosen), record)


def with_float_layers(recipe: Recipe, layers: Sequence[str]) -> Recipe:
    """The recipe with a rule at its end for every layer that is to stay float."""
    return recipe.model_copy(update={"rules": (*recipe.rules, *(Rule(match=layer, weights="float") for layer in layers))})
