"""What else takes part in a fit that prunes, and cannot be right there."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from pgb_lightning.callbacks.trainer_queries import shards_first


def check_no_averaging(trainer: pl.Trainer) -> None:
    """Refuse callbacks that copy the module before it is pruned.

    Raises:
        MisconfigurationException: There is one.
    """
    averaging = (WeightAveraging, StochasticWeightAveraging)
    present = list(trainer.callbacks)  # type: ignore[attr-defined]
    found = [type(callback).__name__ for callback in present if isinstance(callback, averaging)]
    if found:
        raise MisconfigurationException(
            f"PGBCallback cannot share a fit with {found[0]}, which copies the module before it is pruned: prune "
            "in a fit of its own (max_epochs=0 will do), then re-finetune the pruned module with averaging."
        )


def check_optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse optimizers that hold parameters from before the pruning; they would train what nobody uses.

    Raises:
        MisconfigurationException: There is one.
    """
    if shards_first(trainer):  # then parameters are pieces of the module's
        return
    own = {id(parameter) for parameter in pl_module.parameters()}
    held = [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
    lost = sum(id(parameter) not in own for parameter in held)
    if lost:
        raise MisconfigurationException(
            f"PGBCallback: {type(pl_module).__name__}.configure_optimizers gave optimizers with {lost} parameters "
            "that are not the module's: pruning puts new ones in the place of old ones. Make the optimizers in "
            "configure_optimizers, out of self.parameters()."
        )
