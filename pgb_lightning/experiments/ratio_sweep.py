r"""Plans for a range of pruning ratios from one calibration: the chosen shapes, the groups, and what is removed.

Example:
    ::

        python -m pgb_lightning.experiments.ratio_sweep sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR --out family.svg

    How much the paper's preset removes from attention and how much from feed-forward sublayers (Table 6)::

        python -m pgb_lightning.experiments.ratio_sweep sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR \
          --preset paper --ratios [0.4,0.5,0.6]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.family import SUBLAYERS, Sublayer
from pgb_lightning.experiments.dense_reference import DenseReference, Evaluation
from pgb_lightning.experiments.missed_targets import ignore_missed_targets
from pgb_lightning.plan import PruningPlan
from pgb_lightning.plotting import HUES, NEUTRAL, require_matplotlib, save
from pgb_lightning.pruning import make_plan
from pgb_lightning.report.summary import split_removed
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
    """Calibrate once, make the plan of every ratio, and print where it has groups and what it removes.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense ``TextClassification``, such as
            :mod:`pgb_lightning.experiments.seeds` writes.
        data_dir: Local folder of parquet files; the Hub if not given.
        model_name_or_path: Name or path of the tokenizer; that of the checkpoint's model if not given.
        ratios: Values of ``pruning_ratio``.
        preset: Preset of the plans.
        measure: Whether to also carry out the plans and evaluate the models on the validation set.
        max_train_samples: Number of training rows, from which the calibration rows are drawn; all if not given.
        calibration_size: Number of calibration rows; 2,048 if not given.
        seed: Seed for drawing the rows.
        num_threads: CPU threads.
        out: File for the figure, such as an SVG file.

    Returns:
        The plans.

    Raises:
        ValueError: If the preset or the task is unknown, or a ratio is out of range.
        ImportError: If a figure is requested and matplotlib is not installed.
    """
    configs = [PruningConfig.from_preset(preset, pruning_ratio=ratio) for ratio in sorted(ratios)]
    if out:
        require_matplotlib()
    torch.set_num_threads(num_threads)
    reference = DenseReference.load(
        task=task,
        ckpt_path=ckpt_path,
        data_dir=data_dir,
        model_name_or_path=model_name_or_path,
        max_train_samples=max_train_samples,
        calibration_size=calibration_size,
        seed=seed,
    )
    searched = any(config.search == "shapes" for config in configs)
    candidates = list_candidates(reference.encoder, reference.statistics, configs[0]) if searched else []
    with ignore_missed_targets():
        plans = [make_plan(reference.encoder, reference.statistics, config, candidates) for config in configs]
    found = [
        reference.evaluate(reference.pruned(plan, config)) if measure else None
        for plan, config in zip(plans, configs, strict=True)
    ]
    Console(width=100).print(_table(plans, found))
    if out:
        save(draw(plans, task), Path(out))
    return plans


def has_groups(plan: PruningPlan, layer: int, sublayer: Sublayer) -> bool:
    """Return whether any matrix of a sublayer has more than one group."""
    return any(plan.matrix(layer, kind).num_groups > 1 for kind in plan.sublayers[sublayer])


def kept_fraction(plan: PruningPlan, layer: int, sublayer: Sublayer) -> float:
    """Return the fraction of a sublayer's weights that a plan keeps."""
    matrices = [plan.matrix(layer, kind) for kind in plan.sublayers[sublayer]]
    return sum(m.kept_parameters for m in matrices) / sum(m.total_parameters for m in matrices)


def draw(plans: Sequence[PruningPlan], title: str) -> Figure:
    """Draw the fraction kept of every sublayer at every ratio: in blue, or in orange if the sublayer has groups.

    Args:
        plans: Plans of one encoder, in ascending order of ratios.
        title: Start of the figure's title.

    Raises:
        ImportError: If matplotlib is not installed.
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
            fraction, grouped = kept_fraction(plan, layer, sublayer), has_groups(plan, layer, sublayer)
            hue = to_rgb(HUES[1] if grouped else HUES[0])
            cells[y][x] = [1 - fraction * (1 - part) for part in hue]
            if grouped:  # visible even where almost nothing is kept
                axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor=hue, linewidth=1.5))
            text_color = "w" if fraction > 0.5 else "k"
            axes.text(x, y, f"{fraction:.0%}", ha="center", va="center", fontsize=7, color=text_color)
    axes.imshow(cells, aspect="auto")
    axes.set_xticks(range(len(plans)), [f"{plan.pruning_ratio:.0%}" for plan in plans], fontsize=8)
    axes.set_yticks(range(len(sublayers)), [f"{layer} {sublayer}" for layer, sublayer in sublayers], fontsize=8)
    axes.set_xlabel("fraction of the encoder's weights removed", fontsize=9)
    axes.set_title(f"{title}: fraction kept of each sublayer", fontsize=10)
    axes.tick_params(length=0, labelcolor=NEUTRAL)
    names = {"fewer heads or neurons": HUES[0], "groups (G > 1)": HUES[1]}
    figure.legend([Patch(color=hue) for hue in names.values()], list(names), loc="outside lower center", ncols=2)
    return figure


def _table(plans: Sequence[PruningPlan], found: Sequence[Evaluation | None]) -> Table:
    """Make a table of the weights removed from each kind of sublayer, in points, and of the sublayers by shape."""
    table = Table(title="Weights removed, and number of sublayers by shape")
    for column in ("removed", *SUBLAYERS, "dense", "smaller", "in groups", "dropped", "score", "KL"):
        table.add_column(column, justify="right")
    for plan, measured in zip(plans, found, strict=True):
        sublayers = [(layer, sublayer) for layer in range(plan.num_layers) for sublayer in SUBLAYERS]
        fractions = [kept_fraction(plan, layer, sublayer) for layer, sublayer in sublayers]
        dense, dropped = (sum(fraction == value for fraction in fractions) for value in (1, 0))
        groups = sum(has_groups(plan, layer, sublayer) for layer, sublayer in sublayers)
        counts = (dense, len(sublayers) - dense - dropped - groups, groups, dropped)
        scores = ("-", "-") if measured is None else (f"{measured.score:.1f}", f"{measured.divergence:.4f}")
        parts = (f"{part.points:.1f}" for part in split_removed(plan).values())
        table.add_row(f"{plan.pruning_ratio:.1%}", *parts, *map(str, counts), *scores)
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.ratio_sweep")
