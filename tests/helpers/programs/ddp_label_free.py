"""Calibrate without labels on any number of CPU processes; every rank saves its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from helpers.entries import find_pgb, make_trainer
from helpers.own import OwnModule, make_loader, make_rows


class LabelFree(OwnModule):
    """Calibrate on rows without labels, which the step needs."""

    def __init__(self) -> None:
        super().__init__()
        self.net.config.problem_type = "single_label_classification"

    def calibration_dataloader(self) -> DataLoader[Any]:
        return DataLoader([(tokens,) for tokens, _ in make_rows(48)], batch_size=8)  # type: ignore[arg-type]


def main(folder: Path, devices: int = 2) -> None:
    """Prune, and save this rank's plan."""
    L.seed_everything(1)
    trainer = make_trainer(folder, 1, devices=devices, strategy="ddp" if devices > 1 else "auto")
    trainer.fit(LabelFree(), make_loader(), make_loader(16))
    plan = find_pgb(trainer).plan
    assert plan is not None
    structure = [(matrix.kind, matrix.input_index, matrix.output_index) for matrix in plan.matrices]
    kept = [matrix.importance_kept for matrix in plan.matrices]
    results = {"structure": structure, "kept": kept, "fisher": plan.config["fisher"]}
    torch.save(results, folder / f"rank{trainer.global_rank}.pt")
