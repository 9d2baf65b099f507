"""The command ``pgb report`` for plans, checkpoints and invalid files."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pgb_lightning.cli.main import main
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts, render_page
from pgb_lightning.report.command import run_report

Make = Callable[..., tuple[PruningPlan, Facts]]


@pytest.fixture(autouse=True)
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures, which are slow and tested in ``test_report_folder.py``."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def checkpoint(path: Path, callbacks: dict[str, Any]) -> str:
    torch.save({"state_dict": {}, "callbacks": callbacks}, path)
    return str(path)


def test_a_plan_is_reported(plan_and_facts: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, _ = plan_and_facts()
    plan.save(tmp_path / "plan.json")
    main(["report", "--path", str(tmp_path / "plan.json"), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "index.html").read_text(encoding="utf-8") == render_page(plan)
    assert "PGB plan" in capsys.readouterr().out


def test_a_checkpoint_is_reported_with_its_measurements(plan_and_facts: Make, tmp_path: Path) -> None:
    plan, facts = plan_and_facts()
    states = {"PGBCallback": {"plan": plan.to_dict()}, "PGBReport": {"facts": facts.to_dict()}}
    page = run_report(checkpoint(tmp_path / "a.ckpt", states), str(tmp_path / "out"))
    assert page.read_text(encoding="utf-8") == render_page(plan, facts)


def test_the_path_of_the_page_is_printed_as_it_is(
    plan_and_facts: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    plan_and_facts()[0].save(tmp_path / "plan.json")
    page = run_report(str(tmp_path / "plan.json"), "~/runs [red] of a long name/report")
    assert page == tmp_path / "runs [red] of a long name" / "report" / "index.html"
    assert f"Report: {page}\n" in capsys.readouterr().out


def test_measurements_of_another_plan_are_left_out(plan_and_facts: Make, tmp_path: Path) -> None:
    (plan, _), (_, others) = plan_and_facts("paper"), plan_and_facts("default")
    states = {"PGBCallback": {"plan": plan.to_dict()}, "PGBReport": {"facts": others.to_dict()}}
    page = run_report(checkpoint(tmp_path / "a.ckpt", states), str(tmp_path / "out"))
    assert page.read_text(encoding="utf-8") == render_page(plan)


def test_a_file_without_a_plan_is_refused_in_one_line(tmp_path: Path) -> None:
    truncated, other = tmp_path / "cut.ckpt", tmp_path / "other.json"
    truncated.write_bytes(b"PK\x03\x04")
    other.write_text("{}")
    plain = checkpoint(tmp_path / "plain.ckpt", {})
    for path in ("nowhere.json", "nowhere.ckpt", str(other), str(truncated), plain):
        with pytest.raises(SystemExit, match=r"^pgb: path=") as raised:
            main(["report", "--path", path, "--output_dir", str(tmp_path / "out")])
        assert Path(path).name in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_created_is_refused_in_one_line(plan_and_facts: Make, tmp_path: Path) -> None:
    plan, _ = plan_and_facts()
    plan.save(tmp_path / "plan.json")
    with pytest.raises(SystemExit, match=r"^pgb: output_dir='.*plan\.json/out'.*Not a directory"):
        main(["report", "--path", str(tmp_path / "plan.json"), "--output_dir", str(tmp_path / "plan.json" / "out")])


def test_the_module_runs_as_a_program(plan_and_facts: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_and_facts()[0].save(tmp_path / "plan.json")
    arguments = ["--path", str(tmp_path / "plan.json"), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    runpy.run_module("pgb_lightning.report", run_name="__main__")
    assert (tmp_path / "out" / "index.html").is_file()
