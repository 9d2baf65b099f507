"""Prune by a baseline as ``trainer.fit`` starts, where ``PGBCallback`` would prune."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from pgb_lightning.experiments.baselines.masks import make_permanent
from pgb_lightning.experiments.baselines.registry import Calibrated


class BaselineCallback(pl.Callback):
    """Prune ``module.model`` by a baseline before the optimizer is created.

    For measurements on one device: it needs a data module with a ``calibration_dataloader()``, and prunes in every fit.
    Masks hold in training and are zeros in the weights afterwards.

    Args:
        name: One of :data:`~pgb_lightning.experiments.baselines.BASELINES`.
        pruning_ratio: Share of the encoder's weights to remove; what was removed is :attr:`removed`.
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
            with isolate_rng():  # pruning leaves the order of training as it was
                calibrated = Calibrated(model, list(data.calibration_dataloader()))
                self.removed = calibrated.prune(self.name, model, self.pruning_ratio)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave plain layers, with zeros where there were masks."""
        make_permanent(pl_module)
