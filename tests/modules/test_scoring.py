"""Scores and predictions of one pass over the validation rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.text_tables import reviews, write
from torch import nn
from transformers import AutoModel, AutoModelForTokenClassification

from pgb_lightning.datamodules import SentencesDataModule, TextDataModule
from pgb_lightning.modules import SentenceEmbedding, TextClassification, TokenClassification
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.modules.scoring import evaluate

NAMES = ("bad", "good")
TAGS = ("O", "B-x", "I-x")


def _texts(fine_tuned: Callable[..., str], folder: Path) -> tuple[FineTuning, TextDataModule]:
    model = fine_tuned(names=NAMES, initializer_range=0.2)
    table = str(write(folder / "rows.csv", reviews(60, label=lambda row: NAMES[row % 2])))
    return TextClassification(model), TextDataModule(table, model, max_length=32, eval_batch_size=4)


def _words(fine_tuned: Callable[..., str], folder: Path) -> tuple[FineTuning, TextDataModule]:
    tagger = fine_tuned(AutoModelForTokenClassification, names=TAGS, initializer_range=0.2)
    rows = [
        {"tokens": ["a", "good", "film"][: 1 + row % 3], "tags": ["O", "B-x", "I-x"][: 1 + row % 3]}
        for row in range(60)
    ]
    table = str(write(folder / "rows.jsonl", rows))
    return TokenClassification(tagger), TextDataModule(table, tagger, max_length=32, eval_batch_size=4)


def _pairs(fine_tuned: Callable[..., str], folder: Path) -> tuple[FineTuning, TextDataModule]:
    encoder = fine_tuned(AutoModel, initializer_range=0.2)
    rows = [
        {"first": f"a good film {row}", "second": "a bad film" * (1 + row % 2), "score": row % 5} for row in range(60)
    ]
    table = str(write(folder / "pairs.jsonl", rows))
    data = SentencesDataModule(
        table, encoder, text_columns=["first", "second"], label_column="score", max_length=32, eval_batch_size=4
    )
    return SentenceEmbedding(encoder), data


@pytest.mark.parametrize("make", [_texts, _words, _pairs])
def test_one_pass_gives_the_scores_and_the_predictions(
    make: Callable[..., tuple[FineTuning, TextDataModule]], fine_tuned: Callable[..., str], tmp_path: Path
) -> None:
    module, data = make(fine_tuned, tmp_path)
    data.prepare_data()
    data.setup("fit")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    [expected] = trainer.validate(module, datamodule=data, verbose=False)
    batches: Any = trainer.predict(module, dataloaders=data.val_dataloader())
    callbacks = list(trainer.callbacks)
    passes = _count_passes(module.model)
    scores, predictions = evaluate(trainer, module, data, is_labeled=True)
    texts = 2 if isinstance(module, SentenceEmbedding) else 1
    assert len(passes) == texts * len(data.val_dataloader()) > texts
    assert scores == pytest.approx(expected)
    assert trainer.callbacks == callbacks
    for found, batch in zip(predictions, batches, strict=True):
        assert torch.equal(found, batch.get("embeddings", batch.get("predictions")))


def test_rows_without_labels_have_predictions_only(fine_tuned: Callable[..., str], tmp_path: Path) -> None:
    model = fine_tuned(names=NAMES, initializer_range=0.2)
    data = TextDataModule(str(write(tmp_path / "rows.csv", reviews(60))), model, max_length=32, eval_batch_size=4)
    data.prepare_data()
    data.setup("fit")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    scores, predictions = evaluate(trainer, TextClassification(model), data, is_labeled=False)
    assert scores == {}
    assert len(predictions) == len(data.val_dataloader())


def _count_passes(model: nn.Module) -> list[int]:
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return passes
