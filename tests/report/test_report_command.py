"""`pgb report`: of a plan, of a checkpoint, and of what is neither."""

from __future__ import annotations

import subprocess
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


def checkpoint(path: Path, callbacks: dict[str, Any]) -> str:
    torch.save({"state_dict": {}, "callbacks": callbacks}, path)
    return str(path)


def test_a_plan_becomes_a_page(made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, _ = made()
    plan.save(tmp_path / "plan.json")
    main(["report", "--path", str(tmp_path / "plan.json"), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "index.html").read_text(encoding="utf-8") == render_page(plan)
    assert "PGB plan" in capsys.readouterr().out


def test_a_checkpoint_knows_what_was_measured(made: Make, tmp_path: Path) -> None:
    plan, facts = made()
    states = {"PGBCallback": {"plan": plan.to_dict()}, "PGBReport": {"facts": facts.to_dict()}}
    page = run_report(checkpoint(tmp_path / "a.ckpt", states), str(tmp_path / "out"))
    assert page.read_text(encoding="utf-8") == render_page(plan, facts)


def test_what_was_measured_of_another_plan_is_left_out(made: Make, tmp_path: Path) -> None:
    (plan, _), (_, others) = made("paper"), made("default")
    states = {"PGBCallback": {"plan": plan.to_dict()}, "PGBReport": {"facts": others.to_dict()}}
    page = run_report(checkpoint(tmp_path / "a.ckpt", states), str(tmp_path / "out"))
    assert page.read_text(encoding="utf-8") == render_page(plan)


def test_what_holds_no_plan_is_refused_in_one_line(tmp_path: Path) -> None:
    cut_off, other = tmp_path / "cut.ckpt", tmp_path / "other.json"
    cut_off.write_bytes(b"PK\x03\x04")
    other.write_text("{}")
    for path, message in {
        "nowhere.json": "path='nowhere.json' is not a file",
        "nowhere.ckpt": "path='nowhere.ckpt' is not a file",
        str(other): "holds no plan that can be carried out",
        str(cut_off): "cannot be read as a checkpoint",
        checkpoint(tmp_path / "plain.ckpt", {}): "holds no plan: it was saved with its weights only",
    }.items():
        with pytest.raises(SystemExit, match="pgb: path") as raised:
            main(["report", "--path", path, "--output_dir", str(tmp_path / "out")])
        assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(made: Make, tmp_path: Path) -> None:
    plan, _ = made()
    plan.save(tmp_path / "plan.json")
    with pytest.raises(SystemExit, match=r"^pgb: output_dir='.*plan\.json/out' cannot be written: .*Not a directory"):
        main(["report", "--path", str(tmp_path / "plan.json"), "--output_dir", str(tmp_path / "plan.json" / "out")])


def test_the_module_runs_as_a_program(made: Make, tmp_path: Path) -> None:
    made()[0].save(tmp_path / "plan.json")
    words = ["--path", str(tmp_path / "plan.json"), "--output_dir", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-m", "pgb_lightning.report", *words], check=True, capture_output=True)
    assert (tmp_path / "out" / "index.html").is_file()
