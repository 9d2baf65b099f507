"""Refuse strategies and callbacks that cannot work in a fit that prunes."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging

from pgb_lightning._compat import launches_child_processes
from pgb_lightning.callbacks.trainer_queries import shards_before_restore

#: Callbacks that copy the module, or refer to its layers, from their ``setup`` on.
_HOLD_LAYERS = (WeightAveraging, StochasticWeightAveraging, ModelPruning)


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
    """Refuse incompatible callbacks: those that hold the module's layers before it is pruned.

    Raises:
        MisconfigurationException: If the Trainer has such a callback.
    """
    present = list(trainer.callbacks)  # type: ignore[attr-defined]
    found = [type(callback).__name__ for callback in present if isinstance(callback, _HOLD_LAYERS)]
    if found:
        raise MisconfigurationException(
            f"PGBCallback cannot be combined with {found[0]}, which copies or selects layers before they are pruned. "
            f"Prune in a separate fit (max_epochs=0 is enough), then re-finetune the pruned module with {found[0]}."
        )
