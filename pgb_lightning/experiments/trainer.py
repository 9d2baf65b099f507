"""The Trainer of the measurements: the same wherever a model is fine-tuned or re-finetuned."""

from __future__ import annotations

import gc
from typing import Any

import lightning as L
from lightning.pytorch.accelerators import MPSAccelerator


def make_trainer(epochs: int, accelerator: str | None = None, **settings: Any) -> L.Trainer:
    """Make a Trainer of one device that clips gradients, and writes nothing by itself.

    Args:
        epochs: Epochs to train.
        accelerator: Where to; if not given, where Lightning would, but for an Apple GPU, which has no float64 and so
            cannot prune.
        settings: Further arguments of the Trainer.
    """
    gc.collect()  # a Trainer and its module hold each other: the last model goes before the next one is trained
    return L.Trainer(
        max_epochs=epochs,
        accelerator=accelerator or ("cpu" if MPSAccelerator.is_available() else "auto"),
        devices=1,  # several would change the batch, and run the whole command each
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        **settings,
    )
