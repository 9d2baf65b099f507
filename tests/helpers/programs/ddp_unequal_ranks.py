"""Prune on two CPU processes that see different data, or of which one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from helpers.entries import find_pgb, make_trainer
from helpers.own import OwnModule, make_loader, make_rows
from pgb_lightning.callbacks.pruning import distributed


class DifferentData(OwnModule):
    """Every rank has its own calibration rows, and a different number of them."""

    def calibration_dataloader(self) -> DataLoader[Any]:
        rows = make_rows(32 + 16 * self.global_rank, seed=self.global_rank)
        return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]


def fail(*_: Any) -> Any:
    raise RuntimeError("an operation failed")


def main(folder: Path, failing: bool = False) -> None:
    """Prune, and save this rank's error, plan and weights."""
    torch.manual_seed(1)
    trainer, module = make_trainer(folder, 1, devices=2, strategy="ddp"), DifferentData()
    message = ""
    with pytest.MonkeyPatch.context() as patch:
        if failing:
            patch.setattr(distributed, "make_plan", fail)
        try:
            trainer.fit(module, make_loader(), make_loader(16))
        except (MisconfigurationException, RuntimeError) as error:
            message = str(error)
    plan = find_pgb(trainer).plan
    results = {"error": message, "plan": plan and plan.to_dict(), "weights": module.net.state_dict()}
    torch.save(results, folder / f"rank{trainer.global_rank}.pt")
