"""Fits of families of every kind with all callbacks that look at layers: pruning, distillation, report, resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from pgb_lightning import PruningPlan
from pgb_lightning.callbacks import Distillation, PGBCallback, PGBReport
from pgb_lightning.cost import dense_cost, encoder_cost
from pgb_lightning.encoders.find import find_encoder

MakeTrainer = Callable[..., L.Trainer]


class Module(L.LightningModule):
    """Train a tiny classifier of a family."""

    def __init__(self, model_type: str) -> None:
        super().__init__()
        self.model: Any = tiny_model(model_type)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def loader(count: int = 2) -> Any:
    return torch.utils.data.DataLoader(tiny_batches(count), batch_size=None)


#: Weights without biases, fused, gated and pre-norm; grouped keys; one layer for all runs; heads that are followed.
KINDS = ("modernbert", "eurobert", "albert", "deberta-v2")


@pytest.mark.parametrize("model_type", KINDS)
def test_a_fit_with_all_callbacks(
    model_type: str, trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    module, pgb = Module(model_type), PGBCallback(0.5)
    report = PGBReport(output_dir=str(tmp_path / "report"))
    settings: dict[str, Any] = {"enable_checkpointing": True, "num_sanity_val_steps": -1}
    kept = ModelCheckpoint(tmp_path, save_last=True)
    fit = trainer(pgb, report, Distillation(), kept, **settings)
    fit.fit(module, loader(), loader(1))
    encoder, total = find_encoder(module), dense_cost(find_encoder(module))
    cost = encoder_cost(encoder)
    assert 1 - cost.parameters / total.parameters == pytest.approx(0.5, abs=0.02)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert f"of {total.parameters:,} encoder weights" in said
    assert f"Kept: {cost.parameters:,} weights and {100 * cost.flops / total.flops:.2f}% of the FLOPs" in said
    assert float(fit.callback_metrics["train_distillation"]) > 0
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [entry["kind"] for entry in numbers["matrices"][: len(encoder.matrices)]] == list(encoder.matrices)
    assert numbers["flops"] == {"dense": total.flops, "pruned": cost.flops}
    assert numbers["latency"][0]["pruned_seconds"] > 0
    assert PruningPlan.load(kept.dirpath + "/plan.json") == pgb.plan  # type: ignore[operator]

    resumed = Module(model_type)
    again = trainer(PGBCallback(0.5), Distillation(), max_epochs=2)
    again.fit(resumed, loader(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert encoder_cost(find_encoder(resumed)) == cost
    assert tiny_logits(resumed.model).isfinite().all()
