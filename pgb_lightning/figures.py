"""Draw what PGB does to a weight matrix.

Example:
    ::

        python -m pgb_lightning.figures docs/img/pgb.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jsonargparse import auto_cli
from torch import Tensor

from pgb_lightning.grouping import Groups, group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def example_importance(rows: int = 24, columns: int = 36, num_groups: int = 3, seed: int = 0) -> Tensor:
    """Make an importance matrix whose important weights form groups, scattered over rows and columns.

    Args:
        rows: M.
        columns: N.
        num_groups: G; must divide both.
        seed: Draws the noise and the order.

    Returns:
        I, of shape (M, N), in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    same = torch.arange(rows).remainder(num_groups)[:, None] == torch.arange(columns).remainder(num_groups)
    important = torch.where(same, 0.45, 0.0) + 0.55 * torch.rand(rows, columns, generator=generator)
    order = torch.randperm(rows, generator=generator), torch.randperm(columns, generator=generator)
    return important[order[0]][:, order[1]] ** 2


def kept_mask(importance: Tensor, groups: Groups) -> Tensor:
    """Return which weights lie in a block, at their original places: (M, N), bool."""
    mask = torch.zeros(importance.shape, dtype=torch.bool)
    mask[groups.rows.unsqueeze(2), groups.columns.unsqueeze(1)] = True
    return mask


def draw(num_groups: int = 3) -> Figure:
    """Draw W, the permuted matrix with its blocks, and the pruned matrix in the original order.

    Args:
        num_groups: G.

    Returns:
        A figure with three panels.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
    """
    try:
        from matplotlib import pyplot, rcParams
        from matplotlib.patches import Rectangle
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('drawing needs matplotlib: pip install "pgb-lightning[figures]"') from error
    rcParams["svg.hashsalt"] = "pgb"  # the same picture gives the same file
    importance = example_importance(num_groups=num_groups)
    groups = group(importance, num_groups, "balanced", num_permutations=6)
    permuted = importance[groups.rows.flatten()][:, groups.columns.flatten()]
    pruned = importance.where(kept_mask(importance, groups), torch.nan)

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained", facecolor="white")
    share = float(groups.kept(importance).sum() / importance.sum())
    _panel(axes[0], importance, "W: importance of each weight")
    _panel(axes[1], permuted, f"permuted: {num_groups} blocks hold {share:.0%} of it")
    _panel(axes[2], pruned, f"pruned: 1/{num_groups} of the weights, at their places")
    height, width = groups.rows.shape[1], groups.columns.shape[1]
    for g in range(num_groups):
        corner = (g * width - 0.5, g * height - 0.5)
        axes[1].add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#D55E00", linewidth=2.2))
    axes[0].set_ylabel("inputs")
    axes[1].set_xlabel("outputs")
    return figure


def _panel(axes: Axes, values: Tensor, title: str) -> None:
    """Draw one matrix."""
    axes.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])


def save(path: str) -> None:
    """Write the figure to a file, in the format of its ending.

    Args:
        path: Such as ``docs/img/pgb.svg``.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.endswith(".svg") else None
    draw().savefig(path, metadata=metadata, dpi=120)


if __name__ == "__main__":
    auto_cli(save)
