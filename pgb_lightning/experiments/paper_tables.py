"""The paper's Tables 1, 3 and 4 from the results of :mod:`pgb_lightning.experiments.seeds`, beside its own numbers.

Example:
    ::

        python -m pgb_lightning.experiments.paper_tables '[runs/sst2/results.jsonl, runs/mrpc/results.jsonl]'

    As Markdown, with a figure of the scores that are lost at each ratio::

        python -m pgb_lightning.experiments.paper_tables '[runs/sst2/results.jsonl]' --markdown true --out lost.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import auto_cli
from rich import box
from rich.console import Console
from rich.table import Table

from pgb_lightning.experiments import paper_numbers
from pgb_lightning.experiments.lost import Lost, read_lost
from pgb_lightning.experiments.mean_std import format_mean_std
from pgb_lightning.plotting import NEUTRAL, add_legend, check_suffix, require_matplotlib, save, series_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = "paper, BERT-base: "
"""Start of the name of a row with published numbers."""


def run(files: tuple[str, ...] | str, markdown: bool = False, out: str | None = None) -> list[Table]:
    """Print the tables: drops from each model's own dense model in points, as mean and standard deviation over seeds.

    Args:
        files: Result files of :mod:`pgb_lightning.experiments.seeds`.
        markdown: Whether to print the tables as Markdown.
        out: File for the figure, such as an SVG file; no figure is drawn if not given.

    Returns:
        The tables.

    Raises:
        ValueError: If a file does not exist or contains anything but such results, results of one task were measured
            with different settings, or ``out`` is not an SVG, PNG or PDF file.
        ImportError: If a figure is requested and matplotlib is not installed.
    """
    paths = [files] if isinstance(files, str) else list(files)
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise ValueError(f"files contains {missing[0]!r}, which does not exist. Pass files that seeds wrote.")
    if out is not None:
        check_suffix(out, "out")
    lost = read_lost(paths)
    tables = [table_1(lost), table_3(lost), table_4(lost)]
    for table in tables:
        if markdown:
            table.box = box.MARKDOWN
        Console(width=200).print(table)
    if out:
        save(draw(lost), Path(out))
    return tables


def table_1(lost: Sequence[Lost]) -> Table:
    """Make Table 1: the score that each method loses by task, at 50 % and 88 % in the paper."""
    tasks = _in_order(lost)
    table = _table("Table 1: points below the dense model after re-finetuning", "removed", "method")
    for task in tasks:
        table.add_column(task, justify="right")
    table.add_row("0 %", "dense, score", *(format_mean_std(_dense_scores(lost, task)) for task in tasks))
    table.add_row("0 %", f"{PAPER}dense, score", *(_number(paper_numbers.DENSE.get(task)) for task in tasks))
    for ratio in sorted({*paper_numbers.TABLE_1, *(one.ratio for one in lost)}):
        removed = f"{ratio:.0%}".replace("%", " %")
        for label in _labels(lost, ratio):
            cells = (_select(lost, task, ratio, label) for task in tasks)
            table.add_row(removed, label, *(format_mean_std([one.after for one in cell]) for cell in cells))
        for name, scores in paper_numbers.TABLE_1.get(ratio, {}).items():
            drops = (paper_numbers.DENSE[task] - scores[task] if task in scores else None for task in tasks)
            table.add_row(removed, PAPER + name, *map(_number, drops))
    return table


def table_3(lost: Sequence[Lost]) -> Table:
    """Make Table 3: the score that is lost before and after re-finetuning at 40 % and 60 %."""
    table = _table("Table 3: points below the dense model before and after re-finetuning", "task", "method")
    for ratio in (0.4, 0.6):
        for stage in ("vanilla", "re-finetuned"):
            table.add_column(f"{ratio:.0%} {stage}".replace("%", " %"), justify="right")
    for task in _in_order(lost):
        for label in dict.fromkeys(label for ratio in (0.4, 0.6) for label in _labels(lost, ratio, task)):
            cells = [_select(lost, task, ratio, label) for ratio in (0.4, 0.6)]
            stages = ([getattr(one, stage) for one in cell] for cell in cells for stage in ("before", "after"))
            table.add_row(task, label, *map(format_mean_std, stages))
        if published := paper_numbers.TABLE_3.get(task):
            drops = (paper_numbers.DENSE[task] - score for ratio in (0.4, 0.6) for score in published[ratio])
            table.add_row(task, f"{PAPER}PGB", *map(_number, drops))
    return table


def table_4(lost: Sequence[Lost]) -> Table:
    """Make Table 4: the cost of pruning and re-finetuning at 88 %; in the paper on QQP."""
    table = _table("Table 4: pruning + re-finetuning at 88 %", "task", "method")
    for column in ("epochs", "hours", "peak memory, GB", "GFLOPs", "score"):
        table.add_column(column, justify="right")
    for task in _in_order(lost):
        for label in _labels(lost, 0.88, task):
            rows = _select(lost, task, 0.88, label)
            hours = (format_mean_std([one.hours[step] for one in rows], digits=2) for step in (0, 1))
            memory = [one.peak_memory / 1e9 for one in rows if one.peak_memory is not None]
            table.add_row(
                task,
                label,
                f"0 + {rows[0].epochs}",
                " + ".join(hours),
                format_mean_std(memory),
                format_mean_std([one.flops / 1e9 for one in rows], digits=2),
                format_mean_std([one.dense - one.after for one in rows]),
            )
    for name, row in paper_numbers.TABLE_4.items():
        spent = [" + ".join(map(str, pair)) for pair in (row.epochs, row.hours)]
        table.add_row("qqp", PAPER + name, spent[0], f"≤ {spent[1]}", "-", f"{row.gflops:.2f}", _number(row.score))
    return table


def draw(lost: Sequence[Lost]) -> Figure:
    """Draw the score that is lost after re-finetuning against the fraction removed, with one panel per task.

    Bars are standard deviations over seeds. The dashed gray line is what PGB loses on BERT-base in the paper's Table 1.

    Args:
        lost: The results.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    tasks = _in_order(lost)
    labels = list(dict.fromkeys(one.label for one in lost))
    columns = max(2, len(tasks))
    height = 2.9 + 0.2 * (1 + len(labels)) / columns
    figure = Figure(figsize=(0.6 + 2.6 * columns, height), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        for number, label in enumerate(labels):
            ratios = sorted({one.ratio for one in lost if (one.task, one.label) == (task, label)})
            points = [Lost.summary(_select(lost, task, ratio, label)) for ratio in ratios]
            if points:
                removed, means, deviations = zip(*points, strict=True)
                style = series_style(number)
                axes.errorbar(removed, means, deviations, markersize=4, capsize=2, label=label, **style)
        published = {ratio: rows["PGB"].get(task) for ratio, rows in paper_numbers.TABLE_1.items()}
        known = [(ratio, paper_numbers.DENSE[task] - score) for ratio, score in published.items() if score]
        if known:
            axes.plot(*zip(*known, strict=True), "--", color=NEUTRAL, marker=".", label=f"{PAPER}PGB")
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("fraction removed", fontsize=9, color=NEUTRAL)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8, labelcolor=NEUTRAL)
    panels[0].set_ylabel("points below dense", fontsize=9, color=NEUTRAL)
    add_legend(figure, columns)
    return figure


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _in_order(lost: Sequence[Lost]) -> list[str]:
    """Return the tasks, those of the paper first and in its order."""
    found = dict.fromkeys(one.task for one in lost)
    return [task for task in paper_numbers.TASKS if task in found] + [
        task for task in found if task not in paper_numbers.TASKS
    ]


def _labels(lost: Sequence[Lost], ratio: float, task: str | None = None) -> list[str]:
    return list(dict.fromkeys(one.label for one in lost if one.ratio == ratio and task in (None, one.task)))


def _select(lost: Sequence[Lost], task: str, ratio: float, label: str) -> list[Lost]:
    return [one for one in lost if (one.task, one.ratio, one.label) == (task, ratio, label)]


def _dense_scores(lost: Sequence[Lost], task: str) -> list[float]:
    """Return the scores of a task's dense models, one per seed."""
    return list({one.seed: one.dense for one in lost if one.task == task}.values())


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.paper_tables")
