r"""The paper's sensitivity to τ and G_max (Fig. 6 and 7), and how the removed weights split (Table 6).

Example:
    ::

        python -m pgb_lightning.experiments.sensitivity sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR \
          --results sensitivity.jsonl --out sensitivity.svg
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.experiments.checkpoint_files import hash_file, require_file
from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.experiments.missed_targets import ignore_missed_targets
from pgb_lightning.experiments.records import Result, ResultFile
from pgb_lightning.grouping.planning import plan_at_rank
from pgb_lightning.plotting import NEUTRAL, require_matplotlib, save, series_style
from pgb_lightning.pruning import make_plan
from pgb_lightning.report.summary import split_removed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: G_max of the paper, at which τ is varied.
MAX_GROUPS = 6
#: The quantities that are drawn, with their labels.
PANELS = {"score": "score, x 100", "divergence": "divergence", "attention": "removed from attention, points"}


def run(
    task: str,
    ckpt_path: str,
    data_dir: str | None = None,
    model_name_or_path: str | None = None,
    ratios: tuple[float, ...] = (0.4, 0.5, 0.6),
    thresholds: int = 8,
    max_groups: tuple[int, ...] = (2, 3, 4, 6, 8),
    preset: str = "paper",
    max_train_samples: int | None = None,
    calibration_size: int | None = None,
    seed: int = 0,
    num_threads: int = 1,
    results: str | None = None,
    out: str | None = None,
) -> list[Result]:
    """Calibrate once, prune with several τ and G_max at every ratio, and evaluate on the validation set.

    Models of one ratio have the same size: Algorithm 1 is run with τ, and single group numbers are then adjusted to the
    budget. τ varies at G_max = 6 over all values that meet the ratio; G_max varies with the τ that
    ``importance_threshold="auto"`` chooses. Nothing is re-finetuned.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense ``TextClassification``, such as
            :mod:`pgb_lightning.experiments.seeds` writes.
        data_dir: Local folder of parquet files; the Hub if not given.
        model_name_or_path: Name or path of the tokenizer; that of the checkpoint's model if not given.
        ratios: Values of ``pruning_ratio``.
        thresholds: Number of τ for each ratio, in even steps of rank between the smallest and the largest.
        max_groups: Values of G_max.
        preset: "paper" or "balanced".
        max_train_samples: Number of training rows, from which the calibration rows are drawn; all if not given.
        calibration_size: Number of calibration rows; 2,048 if not given.
        seed: Seed for drawing the rows.
        num_threads: CPU threads.
        results: JSON-lines file for the results. Existing results in it are reused.
        out: File for the figure, such as an SVG file.

    Returns:
        The results.

    Raises:
        ValueError: If the checkpoint does not exist or is of another task; the preset has no τ; a number is out of
            range; or ``results`` contains anything but results.
        ImportError: If a figure is requested and matplotlib is not installed.
    """
    require_file(ckpt_path)
    if thresholds < 2:
        raise ValueError(f"thresholds={thresholds} is out of range. Use 2 or more.")
    if PruningConfig.from_preset(preset).search != "groups":
        raise ValueError(f"preset={preset!r} has no importance_threshold. Use 'paper' or 'balanced'.")
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # raises if out of range
    for number in max_groups:
        PruningConfig(max_groups=number)
    if out:
        require_matplotlib()
    stored = ResultFile(results)
    torch.set_num_threads(num_threads)
    load = partial(
        DenseReference.load,
        task=task,
        ckpt_path=ckpt_path,
        data_dir=data_dir,
        model_name_or_path=model_name_or_path,
        max_train_samples=max_train_samples,
        calibration_size=calibration_size,
        seed=seed,
    )
    settings: Result = {
        "task": task,
        "weights": hash_file(ckpt_path),
        "preset": preset,
        "data_dir": data_dir,
        "max_train_samples": max_train_samples,
        "calibration_size": calibration_size,
        "seed": seed,
    }
    reference: DenseReference | None = None
    found: list[Result] = []
    for cell in _cells(ratios, thresholds, max_groups):
        result = stored.find(settings | cell)
        if result is None:
            reference = reference or load()
            result = {**settings, **cell, **_measure(reference, preset, cell)}
            stored.add(result)
        found.append(result)
    Console(width=100).print(_table(found))
    if out:
        save(draw(found, task), Path(out))
    return found


def _cells(ratios: Sequence[float], thresholds: int, max_groups: Sequence[int]) -> Iterator[Result]:
    """Yield the settings of every result: the ratio, G_max, and the rank of τ in [0, 1], or ``None`` for "auto"."""
    for ratio in ratios:
        for step in range(thresholds):
            yield {"ratio": ratio, "max_groups": MAX_GROUPS, "rank": step / (thresholds - 1)}
        for number in dict.fromkeys((MAX_GROUPS, *max_groups)):
            yield {"ratio": ratio, "max_groups": number, "rank": None}


def _measure(reference: DenseReference, preset: str, cell: Result) -> Result:
    """Prune a copy of the dense model, and return its τ, what it lost, and its scores."""
    config = PruningConfig.from_preset(preset, pruning_ratio=cell["ratio"], max_groups=cell["max_groups"])
    with ignore_missed_targets():
        if cell["rank"] is None:
            plan = make_plan(reference.encoder, reference.statistics, config)
        else:
            plan = plan_at_rank(reference.encoder, reference.statistics, config, cell["rank"])
    measured = reference.evaluate(reference.pruned(plan, config))
    points: Result = {name: part.points for name, part in split_removed(plan).items()}
    threshold = plan.config["importance_threshold_used"]
    return {"threshold": threshold, "removed": plan.pruning_ratio, **points, **asdict(measured)}


def draw(results: Sequence[Result], title: str) -> Figure:
    """Draw scores, divergence and the split of the removed weights against τ and against G_max, a line for each ratio.

    Args:
        results: Results of one model.
        title: Start of the figure's title.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2 + 1.7 * len(PANELS)), layout="constrained")
    panels = figure.subplots(len(PANELS), 2, sharex="col", sharey="row")
    for (name, label), row in zip(PANELS.items(), panels, strict=True):
        for number, ratio in enumerate(sorted({result["ratio"] for result in results})):
            rows = [result for result in results if result["ratio"] == ratio]
            ranked = [result for result in rows if result["rank"] is not None]
            automatic = sorted((result for result in rows if result["rank"] is None), key=itemgetter("max_groups"))
            style = {**series_style(number), "markersize": 3.5, "label": f"{ratio:.0%} removed"}
            row[0].plot([one["threshold"] for one in ranked], [one[name] for one in ranked], **style)
            row[1].plot([one["max_groups"] for one in automatic], [one[name] for one in automatic], **style)
            chosen = next(one for one in automatic if one["max_groups"] == MAX_GROUPS)
            row[0].plot(chosen["threshold"], chosen[name], "*", color=style["color"], markersize=10)
        row[0].set_ylabel(label, fontsize=9, color=NEUTRAL)
    positive = [result["threshold"] for result in results if result["threshold"] > 0]
    panels[0, 0].set_xscale("symlog", linthresh=min(positive, default=1.0))
    panels[-1, 0].set_xlabel(f"τ at G_max = {MAX_GROUPS} (star: auto)", fontsize=9, color=NEUTRAL)
    panels[-1, 1].set_xlabel("G_max at the τ of auto", fontsize=9, color=NEUTRAL)
    for axes in panels.flat:
        axes.tick_params(labelsize=8, labelcolor=NEUTRAL)
    figure.suptitle(f"{title}: sensitivity to τ and G_max, one-shot", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    return figure


def _table(results: Sequence[Result]) -> Table:
    """Make a table of the results; points are percent of all weights."""
    table = Table(title="Sensitivity to τ and G_max, before re-finetuning")
    for column in ("ratio", "G_max", "τ", "removed", "attention", "ffn", "score", "divergence"):
        table.add_column(column, justify="right")
    for one in results:
        threshold = f"{one['threshold']:.2e}" + (" (auto)" if one["rank"] is None else "")
        points = (f"{one[name]:.1f}" for name in SUBLAYERS)
        scores = (f"{one['score']:.1f}", f"{one['divergence']:.4f}")
        table.add_row(f"{one['ratio']}", str(one["max_groups"]), threshold, f"{one['removed']:.1%}", *points, *scores)
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.sensitivity")
