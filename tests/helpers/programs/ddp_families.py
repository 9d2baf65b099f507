"""Prune and fit models of several families on two CPU processes: ddp_families.py FOLDER MODEL_TYPE..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from helpers.families import tiny_batches, tiny_logits, tiny_model
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.process_group import close_process_group


class Classifier(L.LightningModule):
    """A classifier of any family."""

    def __init__(self, model_type: str) -> None:
        super().__init__()
        self.net = tiny_model(model_type).train()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.net(**batch).loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def rows() -> list[dict[str, Tensor]]:
    [batch] = tiny_batches(1, size=48)
    return [{name: value[row] for name, value in batch.items()} for row in range(48)]


def main(folder: Path, model_type: str, ratio: float) -> None:
    """Fit and save this rank's weights and plan. Unused parameters would be an error."""
    L.seed_everything(1)
    module, pgb = Classifier(model_type), PGBCallback(ratio)
    loader: Any = DataLoader(rows(), batch_size=8)  # type: ignore[arg-type]
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pgb],
    )
    trainer.fit(module, loader)
    assert pgb.plan is not None
    results = {"plan": pgb.plan.to_dict(), "state": module.net.state_dict(), "logits": tiny_logits(module.net)}
    torch.save(results, folder / f"{model_type} {ratio} {trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        for target in (0.5, 0.97):
            main(Path(sys.argv[1]), name, target)
    close_process_group()
