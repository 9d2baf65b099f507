"""Embedding models: pooling as stored, calibration and recovery without labels, scores on pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fakes import quiet_trainer
from helpers.text_tables import reviews, write
from lightning.fabric.utilities.exceptions import MisconfigurationException
from scipy.stats import spearmanr
from transformers import AutoModel

from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.datamodules import SentencesDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.command import run_export
from pgb_lightning.modules import SentenceEmbedding
from pgb_lightning.modules.pooling import Pooling, read_pooling, write_pooling
from pgb_lightning.surgery.checks import is_pruned


def scored_pairs(column: str) -> list[dict[str, Any]]:
    return [
        {"sentence1": f"good {'very ' * (row % 4)}film", "sentence2": "a bad film", column: row % 5}
        for row in range(40)
    ]


@pytest.fixture
def embedder(tiny_model_folder: Callable[..., Path]) -> str:
    """Return the folder of a tiny encoder."""
    return str(tiny_model_folder("bert", initializer_range=0.2))


@pytest.fixture(params=["score", "label"])
def pairs(request: pytest.FixtureRequest, embedder: str, tmp_path: Path) -> SentencesDataModule:
    """Return the data of 40 pairs with scores."""
    path = write(tmp_path / "pairs.csv", scored_pairs(request.param))
    return SentencesDataModule(str(path), embedder, max_length=32, batch_size=4, calibration_size=5)


@pytest.mark.parametrize("score", ["entailment", [1.0], None])
def test_scores_that_are_no_numbers_are_refused_by_name(score: Any, embedder: str, tmp_path: Path) -> None:
    rows = [{**row, "gold": score} for row in scored_pairs("n")]
    settings: dict[str, Any] = {"text_columns": ["sentence1", "sentence2"], "max_length": 32}
    path = str(write(tmp_path / "pairs.jsonl", rows))
    with pytest.raises(MisconfigurationException, match=r"'gold' has the score .*use_labels=False"):
        SentencesDataModule(path, embedder, label_column="gold", **settings).setup("fit")
    SentencesDataModule(path, embedder, use_labels=False, **settings).setup("fit")


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_padding_does_not_change_an_embedding(mode: Any, embedder: str) -> None:
    module = SentenceEmbedding(embedder, pooling=mode, normalize=True).eval()
    tokens, mask = torch.tensor([[2, 7, 8, 9]]), torch.ones(1, 4, dtype=torch.long)
    padded = {
        "input_ids": torch.cat([tokens, torch.zeros(1, 3).long()], 1),
        "attention_mask": torch.tensor([[1] * 4 + [0] * 3]),
    }
    with torch.no_grad():
        alone, beside = module(input_ids=tokens, attention_mask=mask), module(**padded)
    torch.testing.assert_close(alone, beside)
    assert alone.norm() == pytest.approx(1.0)


@pytest.mark.parametrize("pooling", [Pooling("mean"), Pooling("cls", normalize=True), Pooling("max")])
def test_pooling_is_read_as_it_was_written(pooling: Pooling, embedder: str, tmp_path: Path) -> None:
    AutoModel.from_pretrained(embedder).save_pretrained(tmp_path)
    assert read_pooling(str(tmp_path)) is None
    write_pooling(tmp_path, pooling, width=24, max_length=32)
    assert read_pooling(str(tmp_path)) == pooling
    assert SentenceEmbedding(str(tmp_path)).pooling == pooling
    assert SentenceEmbedding(str(tmp_path), pooling="max").pooling.mode == "max"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "modules.json",
            '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1"}]',
            "Transformer, Dense",
        ),
        ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}', "pooling_mode_weightedmean_tokens"),
    ],
)
def test_other_parts_and_poolings_are_refused(
    name: str, content: str, message: str, embedder: str, tmp_path: Path
) -> None:
    AutoModel.from_pretrained(embedder).save_pretrained(tmp_path)
    write_pooling(tmp_path, Pooling(), width=24, max_length=32)
    (tmp_path / name).write_text(content)
    with pytest.raises(MisconfigurationException, match=message):
        read_pooling(str(tmp_path))


def test_an_unknown_pooling_is_refused(embedder: str) -> None:
    with pytest.raises(MisconfigurationException, match=r"pooling='sum'"):
        SentenceEmbedding(embedder, pooling="sum")  # type: ignore[arg-type]


def test_training_rows_are_different_sentences_and_validation_rows_pairs(pairs: SentencesDataModule) -> None:
    pairs.setup("fit")
    assert len(pairs.split("train")) == 5
    assert "labels" not in next(iter(pairs.calibration_dataloader()))
    batch: Any = next(iter(pairs.val_dataloader()))
    assert batch["labels"].tolist() == [
        float(score) for score in pairs.load_rows("validation")[pairs.columns.label or ""]
    ]
    assert len(batch["first"]["input_ids"]) == len(batch["second"]["input_ids"]) == 4


def test_the_score_is_spearmans_correlation_with_the_cosine(pairs: SentencesDataModule, embedder: str) -> None:
    module = SentenceEmbedding(embedder).eval()
    [logged] = quiet_trainer().validate(module, datamodule=pairs, verbose=False)
    batch: Any = next(iter(pairs.val_dataloader()))
    with torch.no_grad():
        similarity = torch.cosine_similarity(module(**batch["first"]), module(**batch["second"]))
    expected = spearmanr(similarity, batch["labels"]).statistic
    assert logged["val_spearman"] == pytest.approx(expected, abs=1e-4)


def test_the_mean_squared_calibration_gradient_is_that_of_the_jacobian(embedder: str) -> None:
    """For a linear function of a parameter, E[(v · J)²] = |J|²."""
    module = SentenceEmbedding(embedder).eval()
    bias = find_encoder(module).layers[-1].output.LayerNorm.bias
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(300):
        tokens = torch.randint(5, 20, (1, 6), generator=generator)
        loss = module.calibration_step({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
        squares.append(torch.autograd.grad(loss, bias)[0].square())
    # The mean over tokens of the last LayerNorm's output moves one to one with its bias.
    assert float(torch.stack(squares).mean()) == pytest.approx(1.0, rel=0.1)


def test_an_embedding_model_is_pruned_and_recovered_without_labels(
    pairs: SentencesDataModule, embedder: str, tmp_path: Path
) -> None:
    module = SentenceEmbedding(embedder)
    trainer = quiet_trainer(max_epochs=2, callbacks=[PGBCallback(0.5), Distillation(logits_weight=0)])
    trainer.fit(module, datamodule=pairs)
    assert is_pruned(find_encoder(module))
    assert trainer.callback_metrics["train_distillation"] > 0
    assert "val_spearman" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SentenceEmbedding.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    batch: Any = next(iter(pairs.val_dataloader()))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch["first"]), module.eval()(**batch["first"]))


@pytest.mark.parametrize("format", ["huggingface", "dense"])
def test_an_exported_checkpoint_keeps_its_pooling(
    format: Any, pairs: SentencesDataModule, embedder: str, tmp_path: Path
) -> None:
    module = SentenceEmbedding(embedder, pooling="cls", normalize=True)
    trainer = quiet_trainer(max_epochs=0, callbacks=[PGBCallback(0.5)])
    trainer.fit(module, datamodule=pairs)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    run_export(str(tmp_path / "pruned.ckpt"), str(tmp_path / "out"), format=format)
    assert read_pooling(str(tmp_path / "out")) == Pooling("cls", normalize=True)
    again, tokens = SentenceEmbedding(str(tmp_path / "out")).eval(), torch.randint(5, 20, (8, 6))
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=tokens), module.eval()(input_ids=tokens), rtol=1e-4, atol=1e-5)


def test_training_without_a_teacher_is_refused(pairs: SentencesDataModule, embedder: str) -> None:
    with pytest.raises(MisconfigurationException, match=r"Distillation\(logits_weight=0\)"):
        quiet_trainer(max_epochs=1).fit(SentenceEmbedding(embedder), datamodule=pairs)


def test_validation_on_plain_sentences_is_refused(embedder: str, tmp_path: Path) -> None:
    data = SentencesDataModule(str(write(tmp_path / "rows.csv", reviews())), embedder, max_length=32)
    with pytest.raises(MisconfigurationException, match="limit_val_batches=0"):
        quiet_trainer().validate(SentenceEmbedding(embedder), datamodule=data)
