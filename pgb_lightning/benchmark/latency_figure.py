"""The figure of a benchmark: latency versus the fraction of removed weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pgb_lightning.plotting import HUES, NEUTRAL, save

SERIES = {
    "groups": (HUES[1], "the paper's groups"),
    "narrow": (HUES[0], "fewer heads and neurons"),
    "G =": (HUES[2], "uniform group number"),
    "plan": (HUES[3], "the plan"),
    "checkpoint": ("#000000", "the checkpoint"),
}
"""Color and label of the series for each prefix of model names."""


def draw_latency(results: dict[str, Any], path: Path) -> None:
    """Draw latency versus the fraction of removed encoder weights, with one panel per batch.

    Each series starts at the dense model. The dashed line is a latency proportional to the number of weights. If
    matplotlib is not installed, nothing is drawn and a warning is issued.

    Args:
        results: The result of :func:`pgb_lightning.benchmark.run`.
        path: The SVG file to write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        warnings.warn(
            "No figure was drawn, because matplotlib is not installed: pip install 'pgb-lightning[figures]'.",
            stacklevel=2,
        )
        return
    rows = results["latency"]
    figure = Figure(figsize=(3.4 * len(rows), 3.4), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        dense = row["eager"]["dense"]["median"]
        axes.plot([0, 1], [1, 0], "--", color=NEUTRAL, linewidth=1, label="proportional to weights")
        axes.axhline(1, color=NEUTRAL, linewidth=0.6)
        for series, (hue, label) in SERIES.items():
            names = ["dense", *(name for name in row["eager"] if name.startswith(series))]
            if len(names) == 1:
                continue
            points = sorted((1 - results["models"][name]["kept"], name) for name in names)
            found = [row["eager"][name] for _, name in points]
            middle = [each["median"] / dense for each in found]
            spread = [[(each["median"] - each["low"]) / dense for each in found]]
            spread.append([(each["high"] - each["median"]) / dense for each in found])
            axes.errorbar([x for x, _ in points], middle, spread, marker="o", capsize=2, color=hue, label=label)
        axes.set_title(f"batch {row['batch_size']} x {row['length']} tokens", fontsize=10)
        axes.set_xlabel("fraction of encoder weights removed")
        axes.set_ylim(0, None)
    figure.axes[0].set_ylabel("latency / dense latency")
    figure.axes[0].legend(fontsize=8)
    save(figure, path)
