"""Files of a report folder."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts, render_page, write_report
from pgb_lightning.report.summary import summarize

Make = Callable[..., tuple[PruningPlan, Facts]]


def test_the_folder_holds_page_numbers_and_figures(plan_and_facts: Make, tmp_path: Path) -> None:
    plan, facts = plan_and_facts()
    page = write_report(tmp_path / "new" / "report", plan, facts)
    assert page.read_text(encoding="utf-8") == render_page(plan, facts)
    files = {path.name: path for path in page.parent.iterdir()}
    assert set(files) == {"index.html", "report.json", "groups.png", "kept.png", "matrices.png"}
    assert json.loads(files["report.json"].read_text()) == json.loads(json.dumps(summarize(plan, facts)))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files.values() if path.suffix == ".png")


def test_without_matplotlib_there_are_no_figures(
    plan_and_facts: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = write_report(tmp_path, *plan_and_facts())
    assert page.read_text(encoding="utf-8") == render_page(*plan_and_facts())
    assert {path.name for path in page.parent.iterdir()} == {"index.html", "report.json"}


def test_a_second_report_overwrites_the_first(
    plan_and_facts: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(tmp_path, *plan_and_facts("paper"))
    page = write_report(tmp_path, *plan_and_facts("default"))
    assert page.read_text(encoding="utf-8") == render_page(*plan_and_facts("default"))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_plan_without_facts(plan_and_facts: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plan, _ = plan_and_facts()
    assert "not measured" in write_report(tmp_path, plan).read_text(encoding="utf-8")


def test_numbers_that_are_not_finite_are_strings_in_json(plan_and_facts: Make, tmp_path: Path) -> None:
    plan, facts = plan_and_facts()
    first, *others = facts.sublayer_errors
    errors = {first: math.nan, **dict.fromkeys(others, math.inf)}
    page = write_report(
        tmp_path, plan, replace(facts, sublayer_errors=errors, scores={"dense": {"val_loss": -math.inf}})
    )
    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert [entry["measured_error"] for entry in found["sublayers"]] == ["NaN", *["Infinity"] * len(others)]
    assert found["scores"]["dense"] == {"val_loss": "-Infinity"}
    text = page.read_text(encoding="utf-8")
    assert "NaN" in text
    assert "nan%" not in text
