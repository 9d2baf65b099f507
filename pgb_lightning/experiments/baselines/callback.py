"""Callback that prunes with a baseline when ``trainer.fit`` starts, at the point where ``PGBCallback`` prunes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from pgb_lightning.callbacks.random_state import isolated_random_state
from pgb_lightning.experiments.baselines.masks import make_permanent
from pgb_lightning.experiments.baselines.registry import Calibrated


class BaselineCallback(pl.Callback):
    """Prune ``module.model`` with a baseline before the optimizer is created.

    Intended for experiments on one device. It needs a data module with a ``calibration_dataloader()``, and prunes in
    every fit. Masks are applied during training and become zeros in the weights at the end of the fit.

    Args:
        name: Name of a baseline in :data:`~pgb_lightning.experiments.baselines.BASELINES`.
        pruning_ratio: Fraction of the encoder's weights to remove. The fraction that was removed is :attr:`removed`.
    """

    def __init__(self, name: str, pruning_ratio: float) -> None:
        self.name = name
        self.pruning_ratio = pruning_ratio
        self.removed = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Calibrate and prune."""
        if stage == "fit":
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            model: Any = pl_module.model
            with isolated_random_state():  # the order of training batches must not depend on pruning
                calibrated = Calibrated(model, list(data.calibration_dataloader()))
                self.removed = calibrated.prune(self.name, model, self.pruning_ratio)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace masked layers by plain layers with zeros in their weights."""
        make_permanent(pl_module)
