"""Write the folder of a report: the page, its numbers as JSON, and figures if matplotlib is installed."""

from __future__ import annotations

from pathlib import Path

from pgb_lightning.atomic_write import write_atomically, write_json
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.facts import Facts
from pgb_lightning.report.figures import draw_figures, has_matplotlib
from pgb_lightning.report.page import render_page
from pgb_lightning.report.summary import summarize


def write_report(folder: str | Path, plan: PruningPlan, facts: Facts | None = None) -> Path:
    """Write a report. Existing files of the same names are overwritten.

    Args:
        folder: Folder for ``index.html``, ``report.json`` and, if matplotlib is installed, the figures as PNG files. It
            is created if it does not exist.
        plan: The plan.
        facts: The measurements. Missing ones are marked as not measured.

    Returns:
        The path of the page.
    """
    facts = facts or Facts.of(plan)
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", summarize(plan, facts))
    if has_matplotlib():
        for name, figure in draw_figures(plan, facts).items():
            figure.savefig(folder / f"{name}.png", dpi=144)
    page = folder / "index.html"
    write_atomically(page, render_page(plan, facts))
    return page
