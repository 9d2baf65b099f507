"""The one moment at which a Trainer's model may change shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher


def before_strategy_setup(trainer: pl.Trainer, action: Callable[[], None]) -> None:
    """Run ``action`` once, after a checkpoint is restored and before the model is wrapped or optimized.

    Lightning has no hook there: in ``Callback.setup`` it is not known yet whether a checkpoint will be restored,
    and in ``on_fit_start`` the optimizer and DDP hold the old parameters. ``Strategy.setup`` is what comes
    between, so it is wrapped on this one strategy object, for one call.

    Args:
        trainer: The Trainer in whose fit this is called.
        action: What to do.

    Raises:
        MisconfigurationException: The strategy shards the model before it restores checkpoints, or trains in
            processes from which only weights come back.
    """
    strategy = trainer.strategy
    if strategy.restore_checkpoint_after_setup:
        raise MisconfigurationException(
            f"strategy={type(strategy).__name__} shards the model before anything can be pruned from it. Prune "
            "on one device or with strategy='ddp' (one epoch or none), then load that checkpoint and re-finetune "
            "with this strategy, without PGBCallback."
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise MisconfigurationException(
            f"strategy={type(strategy).__name__} with forked or spawned processes loads the pruned weights back into a "
            "module of the main process that was never pruned. Use strategy='ddp', which starts the script once for "
            "each process."
        )
    vars(strategy).pop("setup", None)  # left behind by a fit that failed before it got there
    original = strategy.setup

    @wraps(original)
    def setup(trainer: pl.Trainer) -> None:
        vars(strategy).pop("setup", None)
        action()
        original(trainer)

    strategy.setup = setup  # type: ignore[method-assign]
