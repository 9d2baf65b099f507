"""Prune on two CPU processes that see different data, of which one fails, or of which some have no gradients."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from helpers.entries import find_pgb, make_trainer
from helpers.own import OwnModule, make_loader, make_rows
from pgb_lightning.callbacks.pruning import distributed


class DifferentData(OwnModule):
    """Every rank has its own calibration rows, and a different number of them."""

    def calibration_dataloader(self) -> DataLoader[Any]:
        rows = make_rows(32 + 16 * self.global_rank, seed=self.global_rank)
        return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]


class Silent(OwnModule):
    """The loss of some ranks has no gradient in calibration."""

    silent_ranks: tuple[int, ...] = ()

    def calibration_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.loss(batch) * (self.global_rank not in self.silent_ranks)


def fail(*_: Any) -> Any:
    raise RuntimeError("an operation failed")


def main(folder: Path, failing: bool = False, silent_ranks: tuple[int, ...] = ()) -> None:
    """Prune, and save this rank's error, warnings, plan and weights."""
    torch.manual_seed(1)
    trainer = make_trainer(folder, 1, devices=2, strategy="ddp")
    module = Silent() if silent_ranks else DifferentData()
    Silent.silent_ranks = silent_ranks
    message = ""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        if failing:
            patch.setattr(distributed, "make_plan", fail)
        try:
            trainer.fit(module, make_loader(), make_loader(16))
        except (MisconfigurationException, RuntimeError) as error:
            message = str(error)
    plan = find_pgb(trainer).plan
    results = {"error": message, "plan": plan and plan.to_dict(), "weights": module.net.state_dict()}
    if silent_ranks:
        results["warnings"] = [text for each in caught if "calibration samples" in (text := str(each.message))]
    torch.save(results, folder / f"rank{trainer.global_rank}.pt")
