"""The folder of a report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts, render_page, write_report
from pgb_lightning.report.summary import summarize

Make = Callable[..., tuple[PruningPlan, Facts]]


def test_a_folder_holds_page_numbers_and_figures(made: Make, tmp_path: Path) -> None:
    plan, facts = made()
    page = write_report(tmp_path / "new" / "report", plan, facts)
    assert page.read_text(encoding="utf-8") == render_page(plan, facts)
    files = {path.name: path for path in page.parent.iterdir()}
    assert set(files) == {"index.html", "report.json", "groups.png", "kept.png", "matrices.png"}
    assert json.loads(files["report.json"].read_text()) == json.loads(json.dumps(summarize(plan, facts)))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files.values() if path.suffix == ".png")


def test_without_matplotlib_the_page_is_the_same(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_figures = write_report(tmp_path / "with", *made())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = write_report(tmp_path / "without", *made())
    assert without.read_bytes() == with_figures.read_bytes()
    assert {path.name for path in without.parent.iterdir()} == {"index.html", "report.json"}


def test_a_second_report_replaces_the_first(made: Make, tmp_path: Path) -> None:
    write_report(tmp_path, *made("paper"))
    page = write_report(tmp_path, *made("default"))
    assert page.read_text(encoding="utf-8") == render_page(*made("default"))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_plan_is_enough(made: Make, tmp_path: Path) -> None:
    plan, _ = made()
    assert "not measured" in write_report(tmp_path, plan).read_text(encoding="utf-8")
