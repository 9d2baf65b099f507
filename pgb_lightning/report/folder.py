"""Write the folder of a report: the page, its numbers as JSON, and figures if matplotlib is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pgb_lightning.atomic_write import write_atomically
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
    numbers = json.dumps(_as_json(summarize(plan, facts)), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "report.json", numbers)
    if has_matplotlib():
        for name, figure in draw_figures(plan, facts).items():
            figure.savefig(folder / f"{name}.png", dpi=144)
    page = folder / "index.html"
    write_atomically(page, render_page(plan, facts))
    return page


def _as_json(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not support, by strings as in the JSON format of Protocol Buffers."""
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
