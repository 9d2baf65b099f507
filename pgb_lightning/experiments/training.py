"""Training in the experiments: the same Trainer for fine-tuning and re-finetuning."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.accelerators import MPSAccelerator

from pgb_lightning.atomic_write import replacing


def make_trainer(epochs: float, accelerator: str | None = None, **settings: Any) -> L.Trainer:
    """Make a Trainer that uses one device, clips gradients and writes no files.

    Args:
        epochs: Number of epochs. With a fraction, such as 1.5, each of 2 epochs has three quarters of the batches.
        accelerator: Lightning's choice by default, except that the CPU replaces an Apple GPU, which has no float64 and
            therefore cannot prune.
        settings: Further arguments of the Trainer.
    """
    whole = math.ceil(epochs)
    return L.Trainer(
        max_epochs=whole,
        limit_train_batches=None if whole == epochs else epochs / whole,
        accelerator=accelerator or ("cpu" if MPSAccelerator.is_available() else "auto"),
        devices=1,  # more would change the batch size and run the whole command once per device
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        **settings,
    )


def save_weights(trainer: L.Trainer, path: Path) -> None:
    """Save the weights of a trained module in one step, so that an interrupted run leaves no part of a checkpoint.

    Args:
        trainer: The Trainer after the fit.
        path: The file.
    """
    with replacing(path) as temporary:
        trainer.save_checkpoint(temporary, weights_only=True)


class ScoreBeforeTraining(L.Callback):
    """Store the metrics of the sanity check, which runs over the whole validation set before training."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the metrics before they are reset."""
        self.scores = _metrics(trainer)


def train(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    epochs: int,
    checkpoint: Path,
    callbacks: Sequence[L.Callback] = (),
) -> tuple[dict[str, float], dict[str, float]]:
    """Train a module, save its weights, and return its metrics before and after training.

    Args:
        module: The module.
        datamodule: Its data module.
        epochs: Number of epochs.
        checkpoint: File for the weights.
        callbacks: Such as :class:`PGBCallback`. The metrics before training are then those of the pruned module.

    Returns:
        Validation metrics before and after training. Without callbacks, the metrics before training are empty.
    """
    gc.collect()  # a Trainer and its module refer to each other: free the previous model before this one is trained
    before = ScoreBeforeTraining()
    trainer = make_trainer(
        epochs,
        callbacks=[*callbacks, before],
        num_sanity_val_steps=-1 if callbacks else 0,
        check_val_every_n_epoch=epochs,  # only the scores of the last epoch are used
    )
    trainer.fit(module, datamodule=datamodule)
    save_weights(trainer, checkpoint)
    return before.scores, _metrics(trainer)


def _metrics(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
