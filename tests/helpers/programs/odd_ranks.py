"""Two processes that are not alike: odd_ranks.py HOW FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from helpers.entries import make_trainer, pgb_of
from helpers.own import OwnModule, make_loader, make_rows
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from pgb_lightning.callbacks.pruning import distributed as together
from pgb_lightning.process_group import close_process_group


class Different(OwnModule):
    """Every rank has calibration rows of its own, and another number of them."""

    def calibration_dataloader(self) -> DataLoader[Any]:
        return DataLoader(make_rows(32 + 16 * self.global_rank, seed=self.global_rank), batch_size=8)  # type: ignore[arg-type]


def crash(*_: Any) -> Any:
    raise RuntimeError("an operation failed")


def main(how: str, folder: Path) -> None:
    torch.set_num_threads(1)
    L.seed_everything(1)
    trainer, module = make_trainer(folder, 1, devices=2, strategy="ddp"), Different()
    if how == "failing":
        together.make_plan = crash  # type: ignore[assignment]
    error = ""
    try:
        trainer.fit(module, make_loader(), make_loader(16))
    except (MisconfigurationException, RuntimeError) as refused:
        error = str(refused)
    plan = pgb_of(trainer).plan
    found = {"error": error, "plan": plan and plan.to_dict(), "weights": module.net.state_dict()}
    torch.save(found, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    close_process_group()
