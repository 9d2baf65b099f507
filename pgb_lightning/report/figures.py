"""Matplotlib figures of a report, for loggers, papers and slides. The HTML page has its own graphics."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.plan import PruningPlan
from pgb_lightning.plotting import HUES, NEUTRAL
from pgb_lightning.report.facts import Facts
from pgb_lightning.report.maps import blocks_of
from pgb_lightning.report.matrix_image import color_cells, color_table
from pgb_lightning.report.summary import sublayer_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"attention": HUES[0], "ffn": HUES[1]}


def has_matplotlib() -> bool:
    """Return whether matplotlib is installed."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"] is not None
    return importlib.util.find_spec("matplotlib") is not None


def draw_figures(plan: PruningPlan, facts: Facts) -> dict[str, Figure]:
    """Draw all figures of a report.

    Args:
        plan: The plan.
        facts: The measurements.

    Returns:
        The figures by name, ``"groups"``, ``"kept"`` and ``"matrices"``.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    return {
        "groups": draw_group_numbers(plan),
        "kept": draw_kept_weights(plan),
        "matrices": draw_matrices(plan, facts),
    }


def draw_group_numbers(plan: PruningPlan) -> Figure:
    """Draw a heat map of group numbers, with layers as rows and matrices as columns; darker cells keep more weights."""
    figure = _figure(1.3 + 0.65 * len(plan.kinds), 0.9 + 0.34 * plan.num_layers)
    axes = figure.subplots()
    rows = [[plan.matrix(layer, kind) for kind in plan.kinds] for layer in range(plan.num_layers)]
    kept = [[plan.kept_share(matrix) for matrix in row] for row in rows]
    image = axes.imshow(kept, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, matrix in enumerate(row):
            color = "white" if kept[y][x] > 0.6 else "black"
            text = f"{matrix.num_groups} ({kept[y][x]:.0%})"
            axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(plan.kinds)), plan.kinds)
    axes.set_yticks(range(plan.num_layers), [str(layer) for layer in range(plan.num_layers)])
    axes.set_ylabel("layer")
    axes.set_title("number of groups (fraction of weights kept)", fontsize=10)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="fraction kept")
    return figure


def draw_kept_weights(plan: PruningPlan) -> Figure:
    """Draw the weights kept by attention and feed-forward in each layer, compared with the dense layer."""
    figure = _figure(6.4, 3.2)
    axes = figure.subplots()
    layers = range(plan.num_layers)
    bottom, dense = [0.0] * len(layers), [0.0] * len(layers)
    for sublayer in SUBLAYERS:
        counts = [sublayer_weights(plan, layer, sublayer) for layer in layers]
        kept = [count[0] / 1e6 for count in counts]
        axes.bar(layers, kept, bottom=bottom, color=COLORS[sublayer], label=sublayer, width=0.7)
        bottom = [below + more for below, more in zip(bottom, kept, strict=True)]
        dense = [before + count[1] / 1e6 for before, count in zip(dense, counts, strict=True)]
    axes.bar(layers, dense, fill=False, edgecolor=NEUTRAL, linestyle="--", linewidth=0.8, width=0.7, label="dense")
    axes.set_xticks(layers, [str(layer) for layer in layers])
    axes.set_xlabel("layer")
    axes.set_ylabel("weights (millions)")
    axes.set_title(f"weights kept: {plan.kept_parameters:,} of {plan.total_parameters:,}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def draw_matrices(plan: PruningPlan, facts: Facts) -> Figure:
    """Draw every matrix in block order: importance in gray, kept blocks in color."""
    figure = _figure(1.4 * len(plan.kinds), 0.5 + 1.45 * plan.num_layers)
    grid = figure.subplots(plan.num_layers, len(plan.kinds), squeeze=False)
    for layer, row in enumerate(grid):
        for kind, axes in zip(plan.kinds, row, strict=True):
            _draw_matrix(axes, plan, facts, layer, kind)
        row[0].set_ylabel(f"layer {layer}", fontsize=8)
    return figure


def _draw_matrix(axes: Axes, plan: PruningPlan, facts: Facts, layer: int, kind: str) -> None:
    from matplotlib.patches import Rectangle

    matrix = plan.matrix(layer, kind)
    shades = facts.maps.get(f"{layer}.{kind}")
    if shades:
        colors = color_table()
        cells = [[colors[index] for index in line] for line in color_cells(matrix, shades)]
        axes.imshow(cells, extent=(0, 1, 1, 0), interpolation="none", aspect="equal")
    for number, block in enumerate(blocks_of(matrix)):
        hue = HUES[number % len(HUES)]
        corner, size = (block.left, block.top), (block.width, block.height)
        if not shades:
            axes.add_patch(Rectangle(corner, *size, facecolor=hue, alpha=0.4))
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=hue, linewidth=1))
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"{kind}: {matrix.num_groups} ({plan.kept_share(matrix):.0%})", fontsize=7, pad=3)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")
