"""Fit on one of two nodes, started by torchrun: node_fit.py FOLDER {first,restarted}.

In the first start, the second node is killed in the third epoch.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, distributed

from helpers.entries import ResumableModule, fit, rewind, snapshot
from pgb_lightning.process_group import close_process_group

NODES: dict[str, object] = {"strategy": "ddp", "num_nodes": 2}


class Mortal(ResumableModule):
    """Kill the second node, with its launcher, in the third epoch."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if self.training and (self.trainer.global_rank, self.trainer.current_epoch, batch_idx) == (1, 2, 1):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


def refused(folder: Path, start: str | Path) -> str:
    """Return the error of a fit that cannot resume on all nodes."""
    try:
        fit(folder, start, **NODES)
    except MisconfigurationException as error:
        return str(error)
    return "nothing was refused"


def restart(folder: Path) -> None:
    """Resume, then try to resume with other files on the second node."""
    trainer, module = fit(folder, "last", **NODES)
    torch.save(snapshot(trainer, module), folder / f"resumed{trainer.global_rank}.pt")
    distributed.barrier()
    if trainer.is_global_zero:
        rewind(folder)
    distributed.barrier()
    errors = {
        "no checkpoint": refused(folder if trainer.is_global_zero else folder / "empty", "last"),
        "an earlier checkpoint": refused(folder, folder / f"epoch={1 - trainer.global_rank}.ckpt"),
    }
    torch.save(errors, folder / f"errors{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "first":
        fit(Path(sys.argv[1]), module=Mortal(), **NODES)
    else:
        restart(Path(sys.argv[1]))
    close_process_group()
