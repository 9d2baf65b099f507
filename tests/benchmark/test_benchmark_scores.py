"""``pgb benchmark --data``: scores of dense and pruned models in every runtime, beside their speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from helpers.text_tables import reviews, write
from transformers import AutoModelForTokenClassification

from pgb_lightning import benchmark
from pgb_lightning.datamodules import TextDataModule
from pgb_lightning.export import export_huggingface
from pgb_lightning.modules import TextClassification
from pgb_lightning.packaged import read_tokenizer
from pgb_lightning.pruning import prune

QUICK: dict[str, Any] = {"batch_sizes": (2,), "lengths": (8,), "repeats": 2, "min_time": 0.001}

NAMES = ("bad", "good")


def test_scores_stand_beside_speed(
    fine_tuned: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fine_tuned(names=NAMES, initializer_range=0.2)
    table = str(write(tmp_path / "rows.csv", reviews(60, label=lambda row: NAMES[row % 2])))
    data = TextDataModule(table, model, max_length=32)
    data.prepare_data()
    data.setup("fit")
    small = TextClassification(model)
    prune(small.model, data.calibration_dataloader())
    folder = str(export_huggingface(small.model, tmp_path / "small", tokenizer=read_tokenizer(model)))
    found = benchmark.run(
        model=model,
        data=table,
        pruned=(folder,),
        pruning_ratios=(0.7,),
        runtimes=("torch-bf16",),
        out_dir=str(tmp_path / "out"),
        **QUICK,
    )
    assert found["models"]["70% removed"]["kept"] == pytest.approx(0.3, abs=0.05)
    assert found["models"][folder]["kept"] == pytest.approx(0.5, abs=0.05)
    scores = found["scores"]
    assert list(scores) == ["torch", "torch-bf16"]
    for runtime in scores:
        assert list(scores[runtime]) == ["dense", "70% removed", folder]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    [expected] = trainer.validate(small, datamodule=data, verbose=False)
    assert scores["torch"][folder]["accuracy"] == pytest.approx(expected["val_accuracy"])
    assert scores["torch"]["dense"]["agreement"] == 1
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "agreement" in shown
    for line in (
        "Pruning a copy by 70%",
        "Loading 1 of 3: dense",
        "Loading 2 of 3: 70% removed",
        "Scoring 1 of 6: dense in torch",
    ):
        assert line in shown


def test_words_and_rows_without_labels(fine_tuned: Callable[..., str], tmp_path: Path) -> None:
    model = fine_tuned(AutoModelForTokenClassification, names=("O", "B-x", "I-x"), initializer_range=0.2)
    rows = [{"tokens": ["a", "good", "film"][: 1 + row % 3]} for row in range(40)]
    found = benchmark.run(
        model=model,
        data=str(write(tmp_path / "rows.jsonl", rows)),
        pruning_ratios=(),
        runtimes=("torch",),
        out_dir=str(tmp_path / "out"),
        **QUICK,
    )
    assert found["scores"] == {"torch": {"dense": {"agreement": 1.0}}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "rows.csv", "runtimes": ("torch",)}, "data is given, but model=None"),
        ({"model": "my-model", "runtimes": ("torch",)}, "model is given, but data=None"),
        ({"data": "rows.csv", "model": "my-model"}, r"data='rows\.csv' needs runtimes"),
        ({"pruned": ("out",)}, r"pruned=\('out',\) has no effect without data"),
        (
            {"data": "rows.csv", "model": "my-model", "runtimes": ("torch",), "plan": "plan.json"},
            r"plan='plan\.json' has no effect with data",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark.run(out_dir=str(tmp_path / "out"), **QUICK, **settings)
    assert not (tmp_path / "out").exists()
