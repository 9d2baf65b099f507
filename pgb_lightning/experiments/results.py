"""One table and one figure of the results of :mod:`pgb_lightning.experiments.ablations`, for one or more tasks.

Example:
    ::

        python -m pgb_lightning.experiments.results '[sst2.jsonl, cola.jsonl]' --out scores.svg

    As Markdown, for some methods only::

        python -m pgb_lightning.experiments.results '[sst2.jsonl, cola.jsonl]' --methods [default,kwon] --markdown true
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.experiments.markdown import use_markdown
from pgb_lightning.experiments.mean_std import format_mean_std, standard_deviation
from pgb_lightning.experiments.records import Result, check_same_settings, read_results
from pgb_lightning.glue_tasks import get_task
from pgb_lightning.plotting import NEUTRAL, add_legend, check_suffix, require_matplotlib, save, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIGITS = {"score": 1, "divergence": 4, "loss": 3}
"""Measured values, and the digits with which they are shown; more for divergences, if some are small."""

MIN_DIVERGENCE = 1e-6
"""Divergences up to this one are rounding errors."""

IDENTITY = ("task", "weights", "seed", "method", "ratio")
"""Keys that identify a result."""

NEEDED = (*IDENTITY, "kind", "removed", *DIGITS)
"""Keys that every result must have."""

NOT_SETTINGS = {*NEEDED, "checkpoint", "data_dir", "shapes", "refinetuned"}
"""Keys that may differ between the results of one task in a table; all others are training settings."""


def run(
    files: tuple[str, ...] | str,
    methods: tuple[str, ...] | None = None,
    markdown: bool = False,
    out: str | None = None,
) -> list[Result]:
    """Print mean and standard deviation for each task, ratio and method, and draw the scores.

    Args:
        files: Result files that ``--out`` of the ablations wrote.
        methods: Methods to show, in this order, in addition to the dense model; all if not given.
        markdown: Whether to print the table as Markdown.
        out: File for the figure, such as an SVG file; no figure is drawn if not given.

    Returns:
        The results that are shown.

    Raises:
        ValueError: If a file does not exist or contains anything but results; there are no results; a method is in
            none of them; results of one task have different training settings; or ``out`` is not an SVG, PNG or PDF
            file.
        ImportError: If a figure is requested and matplotlib is not installed.
    """
    paths = [files] if isinstance(files, str) else list(files)
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise ValueError(
            f"files contains {missing[0]!r}, which does not exist. Pass files that --out of the ablations wrote."
        )
    if out is not None:
        check_suffix(out, "out")
    found = [result for path in paths for result in read_results("files", path, NEEDED)]
    if not found:
        raise ValueError(f"files={paths} contain no results yet. Pass files with at least one result.")
    known = dict.fromkeys(result["method"] for result in found)
    if unknown := [name for name in methods or () if name not in known]:
        raise ValueError(f"methods contains {unknown[0]!r}. Choose from {', '.join(map(repr, known))}.")
    if methods:
        order, tasks = ("dense", *methods), list(dict.fromkeys(one["task"] for one in found))
        found = [one for one in found if one["method"] in order]
        found.sort(key=lambda one: (tasks.index(one["task"]), order.index(one["method"])))
    for task in dict.fromkeys(result["task"] for result in found):
        same = [result for result in found if result["task"] == task]
        settings = dict.fromkeys(name for result in same for name in result if name not in NOT_SETTINGS)
        check_same_settings(task, same, settings)
    unique: dict[tuple[object, ...], Result] = {}
    for result in found:  # two runs at the same time may have measured the same
        unique.setdefault(tuple(result[name] for name in IDENTITY), result)
    results = list(unique.values())
    Console(width=200).print(tabulate(results, markdown))
    if out:
        save(draw(results), Path(out))
    return results


def tabulate(results: Sequence[Result], markdown: bool = False) -> Table:
    """Make a table of mean and standard deviation over dense models and seeds, in ascending order of ratios.

    The divergence from the dense model is the Kullback-Leibler divergence of the predicted classes; for regression,
    half the mean squared difference.

    Args:
        results: Results of one or more tasks, with seeds in any order.
        markdown: Whether the table is Markdown, which has no title.
    """
    refinetuned = any("refinetuned" in result for result in results)
    title = "One-shot, and re-finetuned" if refinetuned else "One-shot, before re-finetuning"
    table = Table(title=title)
    if markdown:
        use_markdown(table)
    columns = ["task", "ratio", "method", "kind", "removed, %", "score x 100", "divergence", "loss"]
    if refinetuned:
        columns += ["re-finetuned", "divergence", "loss"]
    for column in (*columns, "seeds"):
        table.add_column(column, justify="right", no_wrap=True)
    tasks = dict.fromkeys(result["task"] for result in results)
    cells = dict.fromkeys((result["task"], result["ratio"], result["method"]) for result in results)
    digits = {**DIGITS, "divergence": _digits([one["divergence"] for one in results if one["method"] != "dense"])}
    for task, ratio, method in sorted(cells, key=lambda cell: (list(tasks).index(cell[0]), cell[1])):
        rows = _select(results, task, method, ratio)
        after = [row["refinetuned"] for row in rows if "refinetuned" in row]
        numbers = [format_mean_std([100 * row["removed"] for row in rows])]
        for stage in (rows, after) if refinetuned else (rows,):
            numbers += [format_mean_std([row[name] for row in stage], digits[name]) for name in DIGITS]
        label = f"{task} {get_task(task).metrics[0]}"
        seeds = f"{len(rows)} ({len(after)})" if 0 < len(after) < len(rows) else str(len(rows))
        table.add_row(label, str(ratio), method, rows[0]["kind"], *numbers, seeds)
    return table


def _digits(divergences: Sequence[float]) -> int:
    """Return the digits with which divergences are shown: more if the smallest would have no significant one."""
    smallest = min((value for value in divergences if MIN_DIVERGENCE < value < 1), default=1.0)
    lowest = DIGITS["divergence"]
    return lowest if smallest >= 10**-lowest else 1 - math.floor(math.log10(smallest))


def draw(results: Sequence[Result]) -> Figure:
    """Draw the scores of each method against the fraction of weights removed, with one column of panels per task.

    Bars are standard deviations over dense models. The gray line and band are mean and standard deviation of the dense
    models, which were trained for as long in the panels after re-finetuning.

    Args:
        results: Results of one or more tasks.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result["task"] for result in results))
    stages = ["one-shot", *(["re-finetuned"] if any("refinetuned" in result for result in results) else [])]
    methods = [name for name in dict.fromkeys(result["method"] for result in results) if name != "dense"]
    width = max(2, len(tasks))  # the legend has as many columns, so that it is not cut off
    height = 0.5 + 2.3 * len(stages) + 0.2 * (1 + len(methods)) / width
    figure = Figure(figsize=(0.6 + 2.6 * width, height), layout="constrained")
    panels = figure.subplots(len(stages), len(tasks), squeeze=False, sharex=True, sharey="col")
    for column, task in enumerate(tasks):
        for axes, stage in zip(panels[:, column], stages, strict=True):
            _draw_panel(axes, [result for result in results if result["task"] == task], stage, methods)
        panels[0, column].set_title(f"{task}, {get_task(task).metrics[0]}", fontsize=10)
        panels[-1, column].set_xlabel("fraction removed", fontsize=9, color=NEUTRAL)
    for axes, stage in zip(panels[:, 0], stages, strict=True):
        axes.set_ylabel(f"{stage}, x 100", fontsize=9, color=NEUTRAL)
    add_legend(figure, columns=width)
    return figure


def _draw_panel(axes: Axes, results: Sequence[Result], stage: str, methods: Sequence[str]) -> None:
    """Draw one task at one stage, before or after re-finetuning."""
    task = results[0]["task"]
    models = _select(results, task, "dense", 0.0)
    if dense := _scores(models, stage) or _scores(models, "one-shot"):
        mean, std = statistics.fmean(dense), standard_deviation(dense)
        axes.axhline(mean, color=NEUTRAL, linewidth=1, label="dense")
        axes.axhspan(mean - std, mean + std, color=NEUTRAL, alpha=0.15, linewidth=0)
    for number, method in enumerate(methods):
        points = []
        for ratio in sorted({result["ratio"] for result in results if result["method"] == method}):
            rows = _select(results, task, method, ratio)
            if scores := _scores(rows, stage):
                removed = statistics.fmean(row["removed"] for row in rows)
                points.append((removed, statistics.fmean(scores), standard_deviation(scores)))
        if points:
            removed_fractions, means, stds = (list(values) for values in zip(*points, strict=True))
            style = series_style(number)
            axes.errorbar(removed_fractions, means, stds, markersize=4, capsize=2, label=method, **style)
    axes.tick_params(labelsize=8, labelcolor=NEUTRAL)


def _select(results: Sequence[Result], task: str, method: str, ratio: float) -> list[Result]:
    """Return the results of a task, method and ratio."""
    cell = (task, method, ratio)
    return [result for result in results if (result["task"], result["method"], result["ratio"]) == cell]


def _scores(rows: Sequence[Result], stage: str) -> list[float]:
    """Return the scores before re-finetuning, or after it for the results that have them."""
    if stage == "one-shot":
        return [row["score"] for row in rows]
    return [row["refinetuned"]["score"] for row in rows if "refinetuned" in row]


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.results")
