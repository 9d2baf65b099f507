"""Refuse strategies, callbacks and optimizers that cannot work in a fit that prunes."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from pgb_lightning._compat import launches_child_processes
from pgb_lightning.callbacks.trainer_queries import shards_before_restore


def check_strategy(trainer: pl.Trainer, pl_module: pl.LightningModule, follows: bool, calibrates: bool) -> None:
    """Refuse strategies under which the requested pruning cannot work.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        follows: Whether the module's own code has called ``follow_state_dict``.
        calibrates: Whether the module will be calibrated.

    Raises:
        MisconfigurationException: If the strategy cannot work; the message names an alternative.
    """
    name = type(trainer.strategy).__name__
    if shards_before_restore(trainer) and calibrates:
        raise MisconfigurationException(
            f"PGBCallback: strategy={name} shards the model before it can be calibrated. Prune on one device or with "
            "strategy='ddp' (max_epochs=0 is enough). Then either pass the plan.json of that run to "
            "PGBCallback(plan=...) here, or start from its checkpoint without PGBCallback, which keeps the compensated "
            "weights."
        )
    if trainer.strategy.root_device.type == "mps" and calibrates:
        raise MisconfigurationException(
            "PGBCallback: accelerator='mps' does not support float64, which calibration and compensation need. Prune "
            "with accelerator='cpu' (max_epochs=0 is enough), and re-finetune the resulting checkpoint without "
            "PGBCallback, on any accelerator."
        )
    if launches_child_processes(trainer) and not follows:
        raise MisconfigurationException(
            f"PGBCallback: strategy={name} forks or spawns processes and loads the pruned weights back into the "
            f"{type(pl_module).__name__} of this process, which must be able to rebuild its layers. Call "
            "pgb_lightning.follow_state_dict(self) in its __init__, or use strategy='ddp'."
        )


def check_callbacks(trainer: pl.Trainer) -> None:
    """Refuse incompatible callbacks: those that copy the module before it is pruned.

    Raises:
        MisconfigurationException: If the Trainer has such a callback.
    """
    averaging = (WeightAveraging, StochasticWeightAveraging)
    present = list(trainer.callbacks)  # type: ignore[attr-defined]
    found = [type(callback).__name__ for callback in present if isinstance(callback, averaging)]
    if found:
        raise MisconfigurationException(
            f"PGBCallback cannot be combined with {found[0]}, which copies the module before it is pruned. Prune in a "
            "separate fit (max_epochs=0 is enough), then re-finetune the pruned module with averaging."
        )


def check_optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse optimizers that hold parameters from before the pruning, which the pruned module does not use.

    Raises:
        MisconfigurationException: If an optimizer holds such a parameter.
    """
    if shards_before_restore(trainer):  # Optimizers then hold shards, which are not the module's parameters.
        return
    own = {id(parameter) for parameter in pl_module.parameters()}
    held = [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
    unknown = sum(id(parameter) not in own for parameter in held)
    if unknown:
        raise MisconfigurationException(
            f"PGBCallback: {type(pl_module).__name__}.configure_optimizers returned optimizers with {unknown} "
            "parameters that are not the module's. Pruning replaces parameters: create the optimizers in "
            "configure_optimizers, from self.parameters()."
        )
