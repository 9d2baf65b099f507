"""The figure of :mod:`pgb_lightning.experiments.compare`: scores against hours, the paper's Table 4 as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgb_lightning.experiments.mean_std import standard_deviation
from pgb_lightning.experiments.records import Result
from pgb_lightning.plotting import NEUTRAL, add_legend, series_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label(result: Result) -> str:
    """Return the name of a method, with the recovery of a one-shot method."""
    return str(result["method"]) + ("" if result["recovery"] == "own" else f", {result['recovery']}")


def draw(results: Sequence[Result]) -> Figure:
    """Draw the score of each method against the hours that pruning and training took, with one panel per ratio.

    Bars are standard deviations over dense models. The dashed line is the mean score of the dense models. A method with
    several numbers of epochs has one point for each, joined by a line.

    Args:
        results: The results, of one task.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    ratios = sorted({result["ratio"] for result in results})
    labels = list(dict.fromkeys(map(label, results)))
    figure = Figure(figsize=(1 + 3.4 * len(ratios), 3 + 0.2 * (len(labels) + 1) / 2), layout="constrained")
    panels = figure.subplots(1, len(ratios), squeeze=False, sharey=True)[0]
    dense = statistics.fmean({one["weights"]: one["dense_score"] for one in results}.values())
    for axes, ratio in zip(panels, ratios, strict=True):
        axes.axhline(dense, color=NEUTRAL, linewidth=0.8, linestyle="--", label="dense")
        for number, name in enumerate(labels):
            rows = [one for one in results if (one["ratio"], label(one)) == (ratio, name)]
            points = [[one for one in rows if one["epochs"] == epochs] for epochs in _different(rows)]
            if points:
                hours = [statistics.fmean(sum(one["hours"]) for one in point) for point in points]
                scores = [[one["score"] for one in point] for point in points]
                axes.errorbar(
                    hours,
                    list(map(statistics.fmean, scores)),
                    list(map(standard_deviation, scores)),
                    markersize=5,
                    capsize=2,
                    label=name,
                    **series_style(number),
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_title(f"{ratio:.0%} removed".replace("%", " %"), fontsize=10)
        axes.set_xlabel("hours of pruning and training", fontsize=9, color=NEUTRAL)
        axes.tick_params(labelsize=8, labelcolor=NEUTRAL)
    panels[0].set_ylabel(f"{results[0]['task']}: {results[0]['metric']}", fontsize=9, color=NEUTRAL)
    add_legend(figure, columns=2)
    return figure


def _different(rows: Sequence[Result]) -> list[list[float]]:
    """Return the different numbers of epochs of results, ascending."""
    return sorted({tuple(one["epochs"]): one["epochs"] for one in rows}.values())
