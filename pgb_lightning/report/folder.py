"""The folder of a report: a page, its numbers as JSON, and figures where matplotlib is installed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.facts import Facts
from pgb_lightning.report.figures import draw_all, has_matplotlib
from pgb_lightning.report.page import render_page
from pgb_lightning.report.summary import summarize


def write_report(folder: str | Path, plan: PruningPlan, facts: Facts | None = None) -> Path:
    """Write a report; files of the same names are replaced.

    Args:
        folder: Where ``index.html``, ``report.json`` and, with matplotlib, the figures as PNG go; it is made if it is
            not there.
        plan: The plan.
        facts: What else is known; what is not is marked as such.

    Returns:
        The page.
    """
    facts = facts or Facts.of(plan)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(summarize(plan, facts), indent=2) + "\n"
    _replace(folder / "report.json", numbers.encode())
    if has_matplotlib():
        for name, figure in draw_all(plan, facts).items():
            figure.savefig(folder / f"{name}.png", dpi=144)
    page = folder / "index.html"
    _replace(page, render_page(plan, facts).encode())
    return page


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever reads it meets a whole one."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
