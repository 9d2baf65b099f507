"""Fit for all epochs, then resume from the second epoch, on two CPU processes; every rank saves its snapshots."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed

from helpers.entries import fit, rewind, snapshot


def main(folder: Path) -> None:
    """Save the snapshots of the uninterrupted and the resumed fit."""
    for name, ckpt_path in {"uninterrupted": None, "resumed": "last"}.items():
        trainer, module = fit(folder, ckpt_path, devices=2, strategy="ddp")
        torch.save(snapshot(trainer, module), folder / f"{name}{trainer.global_rank}.pt")
        distributed.barrier()
        if trainer.is_global_zero and ckpt_path is None:
            rewind(folder)
        distributed.barrier()
