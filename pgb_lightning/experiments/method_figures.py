"""Figures of how PGB prunes one matrix, and of the shapes that a sublayer can have.

Example:
    ::

        python -m pgb_lightning.experiments.method_figures docs/img/pgb.svg
        python -m pgb_lightning.experiments.method_figures docs/img/shapes.svg --drawing shapes
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor

from pgb_lightning.grouping.permutation import Blocks, group
from pgb_lightning.plotting import HUES, NEUTRAL, require_matplotlib, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, NEURONS = 12, 24
SHAPES = {
    "dense": (NEURONS, 1, 1),
    "fewer neurons": (NEURONS // 2, 1, 1),
    "groups": (NEURONS, 3, 2),
    "both": (NEURONS // 2, 2, 2),
    "dropped": (0, 0, 0),
}
"""Kept neurons, and the group numbers of W1 and W2."""


def example_importance(rows: int = 24, columns: int = 36, num_groups: int = 3, seed: int = 0) -> Tensor:
    """Make the importance of a small matrix with hidden groups, whose rows and columns are in random order.

    Args:
        rows: M.
        columns: N.
        num_groups: Number of groups; divides M and N.
        seed: Random seed.

    Returns:
        Importance between 0 and 1, of shape (M, N): high, apart from noise, where row and column are in the same
        group.
    """
    generator = torch.Generator().manual_seed(seed)
    group_of_row = torch.randperm(rows, generator=generator) % num_groups
    group_of_column = torch.randperm(columns, generator=generator) % num_groups
    together = group_of_row[:, None] == group_of_column
    noise = torch.rand(rows, columns, generator=generator)
    # Cubing the noise leaves few high values outside the groups.
    return torch.where(together, 0.3 + 0.7 * noise, 0.7 * noise**3)


def kept_mask(groups: Blocks, rows: int, columns: int) -> Tensor:
    """Return a mask of the weights that each group keeps, in the matrix's original order.

    Args:
        groups: The groups.
        rows: M.
        columns: N.

    Returns:
        Boolean mask of shape (G, M, N).

    Example:
        >>> halves = Blocks(rows=torch.tensor([[0, 2], [1, 3]]), columns=torch.tensor([[1], [0]]))
        >>> kept_mask(halves, rows=4, columns=2).int().sum(0).tolist()
        [[0, 1], [1, 0], [0, 1], [1, 0]]
    """
    mask = torch.zeros(len(groups.rows), rows, columns, dtype=torch.bool)
    for group_mask, group_rows, group_columns in zip(mask, groups.rows, groups.columns, strict=True):
        group_mask[group_rows[:, None], group_columns] = True
    return mask


def draw(importance: Tensor, groups: Blocks) -> Figure:
    """Draw a matrix's importance in the original order, permuted into blocks, and pruned in the original order.

    Args:
        importance: I, of shape (M, N).
        groups: The groups that :func:`pgb_lightning.grouping.permutation.group` found.

    Returns:
        A matplotlib figure with three panels, side by side.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    (num_groups, height), width = groups.rows.shape, groups.columns.shape[1]
    shape = importance.shape
    mask = kept_mask(groups, *shape)
    order = groups.rows.flatten()[:, None], groups.columns.flatten()
    hues = [HUES[g % len(HUES)] for g in range(num_groups)]

    def show(axes: Axes, values: Tensor, color: str, where: Tensor | None = None) -> None:
        # The scale starts above white, so that kept weights of zero importance still differ from pruned ones.
        shades = LinearSegmentedColormap.from_list("", [_tint(color, 0.14), color])
        hidden = np.ma.nomask if where is None else ~where.numpy()
        cells = np.ma.array(values.numpy(), mask=hidden)
        # "none" prevents resampling in vector formats: one pixel per weight, scaled by the viewer.
        axes.imshow(cells, cmap=shades, vmin=0, vmax=float(importance.max()), interpolation="none", aspect="equal")

    with matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}):
        figure = Figure(figsize=(10.2, 2.6), facecolor="white")
        figure.subplots_adjust(left=0.03, right=0.992, top=0.86, bottom=0.1, wspace=0.24)
        original, permuted, pruned = figure.subplots(1, 3)
        show(original, importance, NEUTRAL)
        show(permuted, importance[order], NEUTRAL)
        for g, hue in enumerate(hues):
            show(permuted, importance[order], hue, mask[g][order])
            corner = (g * width - 0.5, g * height - 0.5)
            permuted.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=hue, linewidth=2, zorder=3))
            show(pruned, importance, hue, mask[g])
        fraction = float(groups.kept_importance(importance).sum() / importance.sum())
        _frame(original, shape, r"$W$", f"{shape[1]} outputs (darker: more important)")
        original.set_ylabel(f"{shape[0]} inputs", color=NEUTRAL)
        _frame(permuted, shape, r"permuted $\tilde{W}$", f"{num_groups} blocks hold {fraction:.0%} of the importance")
        _frame(pruned, shape, r"$\hat{W}$* in the original order", f"{1 / num_groups:.0%} of the weights stay")
        for axes, label in ((permuted, "permute"), (pruned, "restore\nthe order")):
            _draw_arrow_from_left(axes, label)
    return figure


def draw_shapes() -> Figure:
    """Draw W1 and W2 of a small feed-forward sublayer in the shapes that the search considers, in block order.

    Returns:
        A matplotlib figure with two panels per shape, W1 (inputs x neurons) above W2 (neurons x outputs).

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(10.2, 4.4), facecolor="white")
    figure.subplots_adjust(left=0.06, right=0.99, top=0.9, bottom=0.08, hspace=0.12)
    panels = figure.subplots(2, len(SHAPES), height_ratios=(1, 2))
    for column, (title, (neurons, *groups)) in enumerate(SHAPES.items()):
        kept = 0
        for axes, number, is_w2 in zip(panels[:, column], groups, (False, True), strict=True):
            width, height = (WIDTH, NEURONS) if is_w2 else (NEURONS, WIDTH)
            kept += neurons * WIDTH // number if number else 0
            for g in range(number):
                features, units = WIDTH / number, neurons / number  # the size of a block
                block_width, block_height = (features, units) if is_w2 else (units, features)
                corner = (g * block_width, g * block_height)
                axes.add_patch(
                    Rectangle(corner, block_width, block_height, facecolor=HUES[g], edgecolor="white", linewidth=1)
                )
            axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_color("#B0B0B0")
        panels[0, column].set_title(title, fontsize=9)
        fraction = kept / (2 * WIDTH * NEURONS)
        panels[1, column].set_xlabel(f"{fraction:.0%} of the weights", color=NEUTRAL, fontsize=9)
    for axes, label in zip(panels[:, 0], ("W1: inputs x neurons", "W2: neurons x outputs"), strict=True):
        axes.set_ylabel(label, color=NEUTRAL, fontsize=9)
    return figure


def main(
    path: str,
    drawing: Literal["matrix", "shapes"] = "matrix",
    rows: int = 24,
    columns: int = 36,
    num_groups: int = 3,
    seed: int = 0,
) -> None:
    """Draw how PGB prunes one small synthetic matrix, or the shapes of a sublayer, and save the figure.

    Args:
        path: File to write, such as docs/img/pgb.svg; .svg, .png or .pdf.
        drawing: "matrix": one matrix, permuted and pruned; "shapes": the shapes of a feed-forward sublayer.
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        num_groups: Number of groups in the matrix; divides rows and columns.
        seed: Random seed of the matrix.
    """
    if drawing == "shapes":
        save(draw_shapes(), Path(path))
        return
    importance = example_importance(rows, columns, num_groups, seed)
    save(draw(importance, group(importance, num_groups, "balanced", num_permutations=6)), Path(path))


def _tint(color: str, strength: float) -> str:
    """Mix a color, #RRGGBB, with white."""
    channels = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(255 - strength * (255 - channel)):02X}" for channel in channels)


def _frame(axes: Axes, shape: Sequence[int], title: str, caption: str) -> None:
    """Add title and caption, thin white lines between the weights, and a border to a panel."""
    rows, columns = shape
    axes.set_title(title, pad=6)
    axes.set_xlabel(caption, color=NEUTRAL)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, rows)], minor=True)
    axes.tick_params(which="both", length=0)
    axes.grid(which="minor", color="white", linewidth=0.5)
    for spine in axes.spines.values():
        spine.set_color("#B0B0B0")


def _draw_arrow_from_left(axes: Axes, label: str) -> None:
    """Draw a labeled arrow in the gap to the left of a panel."""
    tip, tail = (-0.03, 0.5), (-0.21, 0.5)
    arrow = {"arrowstyle": "-|>", "color": NEUTRAL, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", tip, tail, "axes fraction", arrowprops=arrow)
    axes.text(-0.12, 0.54, label, transform=axes.transAxes, ha="center", va="bottom", color=NEUTRAL)


if __name__ == "__main__":
    auto_cli(main, prog="python -m pgb_lightning.experiments.method_figures")
