"""What :mod:`pgb_lightning.experiments.ablations` measured, of one task or many, as one table and one figure.

Example:
    ::

        python -m pgb_lightning.experiments.results '[sst2.jsonl, cola.jsonl]' --out scores.svg

    As Markdown, and of some methods alone::

        python -m pgb_lightning.experiments.results '[sst2.jsonl, cola.jsonl]' --methods [default,kwon] --markdown true
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import auto_cli
from rich import box
from rich.console import Console
from rich.table import Table

from pgb_lightning.experiments.records import Result, read_results
from pgb_lightning.experiments.spread import deviation, spread
from pgb_lightning.glue_tasks import get_task
from pgb_lightning.plotting import ENDINGS, HUES, NEUTRAL, require_matplotlib, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIGITS = {"score": 1, "divergence": 4, "loss": 3}
OF_ITS_OWN = ("task", "weights", "seed", "method", "ratio")
NEEDED = (*OF_ITS_OWN, "kind", "removed", *DIGITS)
NO_SETTINGS = {*NEEDED, "checkpoint", "data_dir", "shapes", "refinetuned"}
"""What may differ between results of one task that are shown together; where their data lay is no matter."""


def run(
    files: tuple[str, ...] | str,
    methods: tuple[str, ...] | None = None,
    markdown: bool = False,
    out: str | None = None,
) -> list[Result]:
    """Print the mean and spread of every task, ratio and method; draw scores against what was removed.

    Args:
        files: What ``--out`` of the ablations left: one file or several.
        methods: Which to show, beside the dense model, in this order; all if not given.
        markdown: Whether the table is Markdown.
        out: Where the figure goes, such as an SVG file; none is drawn if not given.

    Returns:
        The results that are shown.

    Raises:
        ValueError: A file is not there or holds something else, there is no result, a method is in none of them,
            results of one task were trained in different ways, or ``out`` is no figure's file.
        ImportError: A figure is wanted and matplotlib is not installed.
    """
    paths = [files] if isinstance(files, str) else list(files)
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise ValueError(f"files names {missing[0]!r}, which is not there: give what --out of the ablations left.")
    if out is not None and Path(out).suffix not in ENDINGS:
        raise ValueError(f"out={out!r} is no figure's file: let it end in one of {', '.join(ENDINGS)}.")
    found = [result for path in paths for result in read_results("files", path, NEEDED)]
    if not found:
        raise ValueError(f"files={paths} hold no result yet: give what --out of the ablations left, once one is there.")
    known = dict.fromkeys(result["method"] for result in found)
    if unknown := [name for name in methods or () if name not in known]:
        raise ValueError(f"methods names {unknown[0]!r}, which is none of {', '.join(map(repr, known))}.")
    if methods:
        order, tasks = ("dense", *methods), list(dict.fromkeys(one["task"] for one in found))
        found = [one for one in found if one["method"] in order]
        found.sort(key=lambda one: (tasks.index(one["task"]), order.index(one["method"])))
    for task in dict.fromkeys(result["task"] for result in found):
        _check_alike(task, [result for result in found if result["task"] == task])
    unique: dict[tuple[object, ...], Result] = {}
    for result in found:  # what two runs measured at the same time counts once
        unique.setdefault(tuple(result[name] for name in OF_ITS_OWN), result)
    results = list(unique.values())
    Console(width=200).print(tabulate(results, markdown))
    if out:
        save(draw(results), Path(out))
    return results


def tabulate(results: Sequence[Result], markdown: bool = False) -> Table:
    """Tabulate results: mean and standard deviation over dense models and seeds, where there are several.

    The divergence is that from the dense model: of the predicted classes (Kullback-Leibler), or for regression half the
    mean squared difference.

    Args:
        results: Of one task or more, in any order of seeds; ratios come in rising order.
        markdown: Whether the table is Markdown, which has no title.
    """
    refinetuned = any("refinetuned" in result for result in results)
    title = "One-shot, and re-finetuned" if refinetuned else "One-shot, before re-finetuning"
    table = Table(title=None if markdown else title, box=box.MARKDOWN if markdown else box.HEAVY_HEAD)
    stages = [("score x 100", "divergence", "loss"), ("re-finetuned", "divergence", "loss")][: 1 + refinetuned]
    for column in ("task", "ratio", "method", "left", "removed, %", *itertools.chain(*stages), "seeds"):
        table.add_column(column, justify="right", no_wrap=True)
    tasks = dict.fromkeys(result["task"] for result in results)
    cells = dict.fromkeys((result["task"], result["ratio"], result["method"]) for result in results)
    for task, ratio, method in sorted(cells, key=lambda cell: (list(tasks).index(cell[0]), cell[1])):
        rows = _of(results, task, method, ratio)
        after = [row["refinetuned"] for row in rows if "refinetuned" in row]
        numbers = [spread([100 * row["removed"] for row in rows])]
        for stage in (rows, after)[: 1 + refinetuned]:
            numbers += [spread([row[name] for row in stage], digits) for name, digits in DIGITS.items()]
        label = f"{task} {get_task(task).metrics[0]}"
        seeds = f"{len(rows)} ({len(after)})" if 0 < len(after) < len(rows) else str(len(rows))
        table.add_row(label, str(ratio), method, rows[0]["kind"], *numbers, seeds)
    return table


def draw(results: Sequence[Result]) -> Figure:
    """Draw the scores of each method against the share of weights removed: a column of panels a task.

    Bars are standard deviations over dense models; the grey line, and the band around it, are the dense models, which
    trained as long where they were re-finetuned.

    Args:
        results: Of one task or more.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result["task"] for result in results))
    stages = ["one-shot", *(["re-finetuned"] if any("refinetuned" in result for result in results) else [])]
    methods = [name for name in dict.fromkeys(result["method"] for result in results) if name != "dense"]
    wide = max(2, len(tasks))  # a legend's column for each, that it may not be cut off
    height = 0.5 + 2.3 * len(stages) + 0.2 * (1 + len(methods)) / wide
    figure = Figure(figsize=(0.6 + 2.6 * wide, height), layout="constrained")
    panels = figure.subplots(len(stages), len(tasks), squeeze=False, sharex=True, sharey="col")
    for column, task in enumerate(tasks):
        for axes, stage in zip(panels[:, column], stages, strict=True):
            _draw_panel(axes, [result for result in results if result["task"] == task], stage, methods)
        panels[0, column].set_title(f"{task}, {get_task(task).metrics[0]}", fontsize=10)
        panels[-1, column].set_xlabel("share removed", fontsize=9, color=NEUTRAL)
    for axes, stage in zip(panels[:, 0], stages, strict=True):
        axes.set_ylabel(f"{stage}, x 100", fontsize=9, color=NEUTRAL)
    shown = [pair for axes in panels.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in shown}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=wide, fontsize=8)
    return figure


def _draw_panel(axes: Axes, results: Sequence[Result], stage: str, methods: Sequence[str]) -> None:
    """Draw one task before re-finetuning, or after it."""
    task = results[0]["task"]
    models = _of(results, task, "dense", 0.0)
    if dense := _scores(models, stage) or _scores(models, "one-shot"):
        middle, half = statistics.fmean(dense), deviation(dense)
        axes.axhline(middle, color=NEUTRAL, linewidth=1, label="dense")
        axes.axhspan(middle - half, middle + half, color=NEUTRAL, alpha=0.15, linewidth=0)
    for place, method in enumerate(methods):
        points = []
        for ratio in sorted({result["ratio"] for result in results if result["method"] == method}):
            rows = _of(results, task, method, ratio)
            if scores := _scores(rows, stage):
                removed = statistics.fmean(row["removed"] for row in rows)
                points.append((removed, statistics.fmean(scores), deviation(scores)))
        if points:
            places, middles, bars = (list(values) for values in zip(*points, strict=True))
            hue, marker = HUES[place % len(HUES)], "osv^Dx"[place // len(HUES) % 6]
            axes.errorbar(places, middles, bars, color=hue, marker=marker, markersize=4, capsize=2, label=method)
    axes.tick_params(labelsize=8, labelcolor=NEUTRAL)


def _of(results: Sequence[Result], *cell: object) -> list[Result]:
    """Pick the results of a task, method and ratio."""
    return [result for result in results if (result["task"], result["method"], result["ratio"]) == cell]


def _scores(rows: Sequence[Result], stage: str) -> list[float]:
    """Return the scores before re-finetuning, or after it where it was done."""
    if stage == "one-shot":
        return [row["score"] for row in rows]
    return [row["refinetuned"]["score"] for row in rows if "refinetuned" in row]


def _check_alike(task: str, results: Sequence[Result]) -> None:
    """Refuse results that may not be averaged, as they were trained in different ways."""
    for name in dict.fromkeys(name for result in results for name in result if name not in NO_SETTINGS):
        values = dict.fromkeys(json.dumps(result.get(name)) for result in results)
        if len(values) > 1:
            raise ValueError(
                f"files hold results of {task} with {name} of {' and '.join(values)}, which do not belong in one "
                "table: give files, or lines of a file, of one of them."
            )


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.results")
