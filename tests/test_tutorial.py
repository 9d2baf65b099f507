"""The tutorial runs from its first block to its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.guides import ROOT, blocks

from pgb_lightning.datamodules import reviews
from pgb_lightning.packaged import packaged_minilm
from pgb_lightning.search import candidates

ROWS = "ROWS = 3000  # of 8,572"


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reviews, "HOLDOUT", 48)  # a faster validation
    monkeypatch.setattr(candidates, "GROUPED_FRACTIONS", ())  # a faster search
    program = "\n".join(blocks(ROOT / "docs" / "tutorial.md", "python"))
    assert ROWS in program
    names: dict[str, Any] = {"__name__": "tutorial"}
    exec(compile(program.replace(ROWS, "ROWS = 96"), "docs/tutorial.md", "exec"), names)

    assert names["same"]
    assert names["Reviews"](str(packaged_minilm())).bert.training
    assert names["pgb"].plan.pruning_ratio == pytest.approx(0.5, abs=0.01)
    assert names["cost"].parameters < 6_000_000 < sum(weight.numel() for weight in names["before"].parameters())
    assert (tmp_path / "runs" / "tutorial" / "exported" / "model.safetensors").stat().st_size < 75e6
    assert (tmp_path / "runs" / "tutorial" / "plan.json").is_file()
    printed = capsys.readouterr().out
    assert "model in memory: True" in printed
    assert printed.count("'score'") == 2
    assert "LABEL_" not in printed
