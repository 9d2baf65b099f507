r"""A whole family of models from one calibration: which shapes are chosen at every ratio, where groups, what is cut.

Example:
    ::

        python -m pgb_lightning.experiments.ratio_sweep sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR --out family.svg

    How much of the cut the paper's recipe takes from attention, and how much from feed-forward networks (Table 6)::

        python -m pgb_lightning.experiments.ratio_sweep sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR \
          --preset paper --ratios [0.4,0.5,0.6]
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import SUBLAYERS, Sublayer
from pgb_lightning.experiments.dense_reference import DenseReference, Measured
from pgb_lightning.plan import PruningPlan
from pgb_lightning.plotting import HUES, NEUTRAL, require_matplotlib, save
from pgb_lightning.pruning import make_plan
from pgb_lightning.report.summary import split_cut
from pgb_lightning.search.candidates import list_candidates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.95)


def run(
    task: str,
    ckpt_path: str,
    data_dir: str | None = None,
    model_name_or_path: str | None = None,
    ratios: tuple[float, ...] = RATIOS,
    preset: str = "default",
    measure: bool = False,
    max_train_samples: int | None = None,
    calibration_size: int | None = None,
    seed: int = 0,
    num_threads: int = 1,
    out: str | None = None,
) -> list[PruningPlan]:
    """Calibrate once, make the plan of every ratio, and say where it has groups and what it cuts.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense `TextClassification`, such as the experiment leaves.
        data_dir: Local parquet folder; the Hub if not given.
        model_name_or_path: Where the tokenizer comes from; from where the model came if not given.
        ratios: Values of ``pruning_ratio``.
        preset: Whose plans.
        measure: Whether to carry the plans out, too, and score the models on the validation set.
        max_train_samples: Training rows that the calibration rows are drawn from; all if not given.
        calibration_size: Calibration rows; 2,048 if not given.
        seed: Draws them.
        num_threads: CPU threads.
        out: Where the figure goes, such as an SVG file.

    Returns:
        The plans.
    """
    configs = [PruningConfig.from_preset(preset, pruning_ratio=ratio) for ratio in sorted(ratios)]
    torch.set_num_threads(num_threads)
    reference = DenseReference.load(
        task, ckpt_path, data_dir, model_name_or_path, max_train_samples, calibration_size, seed
    )
    searched = any(config.search == "shapes" for config in configs)
    candidates = list_candidates(reference.encoder, reference.statistics, configs[0]) if searched else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a missed target shows in the table
        plans = [make_plan(reference.encoder, reference.statistics, config, candidates) for config in configs]
    found = [
        reference.measure(reference.pruned(plan, config)) if measure else None
        for plan, config in zip(plans, configs, strict=True)
    ]
    Console(width=100).print(_table(plans, found))
    if out:
        save(draw(plans, task), Path(out))
    return plans


def grouped(plan: PruningPlan, layer: int, sublayer: Sublayer) -> bool:
    """Tell whether any matrix of a sublayer is cut into more than one group."""
    return any(plan.matrix(layer, kind).num_groups > 1 for kind in SUBLAYERS[sublayer])


def kept(plan: PruningPlan, layer: int, sublayer: Sublayer) -> float:
    """Return the share of a sublayer's weights that a plan keeps."""
    matrices = [plan.matrix(layer, kind) for kind in SUBLAYERS[sublayer]]
    return sum(m.kept_parameters for m in matrices) / sum(m.total_parameters for m in matrices)


def draw(plans: Sequence[PruningPlan], title: str) -> Figure:
    """Draw what is kept of every sublayer at every ratio: blue, or orange where there are groups.

    Args:
        plans: Plans of one encoder, by rising ratio.
        title: What stands above.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    sublayers = [(layer, sublayer) for layer in range(plans[0].num_layers) for sublayer in SUBLAYERS]
    figure = Figure(figsize=(1.6 + 0.55 * len(plans), 1.3 + 0.28 * len(sublayers)), layout="constrained")
    axes = figure.subplots()
    cells = [[[1.0] * 3 for _ in plans] for _ in sublayers]
    for y, (layer, sublayer) in enumerate(sublayers):
        for x, plan in enumerate(plans):
            share, in_groups = kept(plan, layer, sublayer), grouped(plan, layer, sublayer)
            hue = to_rgb(HUES[1] if in_groups else HUES[0])
            cells[y][x] = [1 - share * (1 - part) for part in hue]
            if in_groups:  # seen where next to nothing is kept, too
                axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor=hue, linewidth=1.5))
            axes.text(x, y, f"{share:.0%}", ha="center", va="center", fontsize=7, color="w" if share > 0.5 else "k")
    axes.imshow(cells, aspect="auto")
    axes.set_xticks(range(len(plans)), [f"{plan.pruning_ratio:.0%}" for plan in plans], fontsize=8)
    axes.set_yticks(range(len(sublayers)), [f"{layer} {sublayer}" for layer, sublayer in sublayers], fontsize=8)
    axes.set_xlabel("share of the encoder's weights removed", fontsize=9)
    axes.set_title(f"{title}: share kept of each sublayer", fontsize=10)
    axes.tick_params(length=0, labelcolor=NEUTRAL)
    names = {"fewer heads or neurons": HUES[0], "groups (G > 1)": HUES[1]}
    figure.legend([Patch(color=hue) for hue in names.values()], list(names), loc="outside lower center", ncols=2)
    return figure


def _table(plans: Sequence[PruningPlan], found: Sequence[Measured | None]) -> Table:
    """Tabulate the points of the cut that each kind of sublayer bears, and how many are whole, smaller and so on."""
    table = Table(title="The cut, and sublayers by shape, one calibration")
    for column in ("removed", *SUBLAYERS, "whole", "smaller", "in groups", "dropped", "score", "KL"):
        table.add_column(column, justify="right")
    for plan, measured in zip(plans, found, strict=True):
        sublayers = [(layer, sublayer) for layer in range(plan.num_layers) for sublayer in SUBLAYERS]
        shares = [kept(plan, *place) for place in sublayers]
        whole, dropped = (sum(share == value for share in shares) for value in (1, 0))
        groups = sum(grouped(plan, *place) for place in sublayers)
        counts = (whole, len(sublayers) - whole - dropped - groups, groups, dropped)
        scores = ("-", "-") if measured is None else (f"{measured.score:.1f}", f"{measured.divergence:.4f}")
        parts = (f"{part.points:.1f}" for part in split_cut(plan).values())
        table.add_row(f"{plan.pruning_ratio:.1%}", *parts, *map(str, counts), *scores)
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.ratio_sweep")
