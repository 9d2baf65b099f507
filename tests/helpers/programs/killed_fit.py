"""Fits of entries.py that are killed without warning, each in a forked process: killed_fit.py FOLDER.

It prints the signal that ended each process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import fsspec.implementations.local
import torch
from torch import Tensor

from helpers.entries import ResumableModule, fit
from pgb_lightning.compensation import fit as compensation

MOMENTS = ("calibration", "surgery", "epoch", "before the move", "during the move")


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal(ResumableModule):
    """Die in the third calibration batch, or in the third epoch."""

    when = ""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        in_third_epoch = self.training and self.trainer.current_epoch == 2 and batch_idx == 3
        if (self.when == "calibration" and batch_idx == 2) or (self.when == "epoch" and in_third_epoch):
            die()
        return super().training_step(batch, batch_idx)


def dying_surgery(encoder: Any, plan: Any, layer: int) -> Any:
    pruned = prune_layer(encoder, plan, layer)
    if layer == 1:
        die()
    return pruned


def dying_move(source: str, target: str, half: bool) -> None:
    """Move a finished file to its place; die before the third epoch's move, or while it is copied to another disk."""
    third = os.path.basename(target) == ("last.ckpt" if half else "epoch=2.ckpt")
    if third and Path(target).with_name("epoch=1.ckpt").exists():
        if half:
            content = Path(source).read_bytes()
            Path(target).write_bytes(content[: len(content) // 2])
        die()
    move(source, target)


prune_layer, move = compensation.prune_layer, shutil.move


def fit_and_die(when: str, folder: Path) -> None:
    """Fit, and kill this process at the given moment."""
    Mortal.when = when
    if when == "surgery":
        compensation.prune_layer = dying_surgery
    if when.endswith("the move"):
        half = when == "during the move"
        fsspec.implementations.local.shutil.move = lambda source, target: dying_move(source, target, half)
    fit(folder, module=Mortal())


if __name__ == "__main__":
    torch.set_num_threads(1)
    signals = {}
    for when in MOMENTS:
        folder = Path(sys.argv[1]) / when
        folder.mkdir()
        child = os.fork()
        if child == 0:
            try:
                fit_and_die(when, folder)
            finally:
                os._exit(0)
        signals[when] = os.WTERMSIG(os.waitpid(child, 0)[1])
    print(json.dumps(signals))
