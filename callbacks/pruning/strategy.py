"""All that depends on the Trainer's strategy: when a model may change shape, and where it may not."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from pgb_lightning.callbacks.trainer_queries import shards_first
from pgb_lightning.checkpoints import load_checked
from pgb_lightning.surgery.from_state_dict import StructureError

_WRAPPED = ("setup", "load_checkpoint", "load_model_state_dict")


def before_strategy_setup(trainer: pl.Trainer, action: Callable[[bool], None]) -> None:
    """Run ``action`` once, after a checkpoint is restored and before the model is wrapped or optimized.

    Lightning has no hook there: in ``Callback.setup`` it is not known yet whether a checkpoint will be restored,
    and in ``on_fit_start`` the optimizer and DDP hold the old parameters. ``Strategy.setup`` is what comes
    between, so it is wrapped on this one strategy object, for one call; and so is the reading of the checkpoint, to
    say plainly what is wrong with one. (Strategies that shard the model restore it later, into its final shape.)

    Args:
        trainer: The Trainer in whose fit, validation, test or prediction this is called.
        action: What to do, told whether a checkpoint was restored.
    """
    call_off(trainer)  # what a run left behind that failed before it got there
    strategy: Any = trainer.strategy
    setup, load_checkpoint, load_model = (getattr(strategy, name) for name in _WRAPPED)
    restored = False

    @wraps(setup)
    def setup_after_action(trainer: pl.Trainer) -> None:
        call_off(trainer)
        action(restored)
        setup(trainer)

    @wraps(load_checkpoint)
    def load_explained(checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load_checked(checkpoint_path, lambda: load_checkpoint(checkpoint_path, *args, **kwargs))
        except ValueError as error:
            raise MisconfigurationException(f"ckpt_path={error}") from error

    @wraps(load_model)
    def load_model_explained(checkpoint: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal restored
        try:
            load_model(checkpoint, *args, **kwargs)
            restored = True
        except StructureError as error:
            raise MisconfigurationException(f"ckpt_path does not fit the module: {error}") from error

    strategy.setup = setup_after_action
    if not shards_first(trainer):
        strategy.load_checkpoint = load_explained
        strategy.load_model_state_dict = load_model_explained


def call_off(trainer: pl.Trainer) -> None:
    """Make a strategy again what it was before :func:`before_strategy_setup`."""
    for name in _WRAPPED:
        vars(trainer.strategy).pop(name, None)


def check_strategy(trainer: pl.Trainer, pl_module: pl.LightningModule, follows: bool, calibrates: bool) -> None:
    """Refuse strategies under which the pruning asked for cannot be right, and say what to do instead.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        follows: Whether the module had ``follow_state_dict`` called on it by itself.
        calibrates: Whether the module is going to be calibrated.

    Raises:
        MisconfigurationException: It cannot.
    """
    name = type(trainer.strategy).__name__
    if shards_first(trainer) and calibrates:
        raise MisconfigurationException(
            f"PGBCallback: strategy={name} cuts the model up before it can be calibrated. Prune on one device or "
            "with strategy='ddp' (max_epochs=0 will do). Then give the plan.json that this writes to "
            "PGBCallback(plan=...) here; or start from the checkpoint that it leaves and do without PGBCallback, "
            "which keeps the compensated weights."
        )
    if trainer.strategy.root_device.type == "mps" and calibrates:
        raise MisconfigurationException(
            "PGBCallback: accelerator='mps' has no float64, which calibration and compensation need. Prune with "
            "accelerator='cpu' (max_epochs=0 will do), and re-finetune the checkpoint that this leaves without "
            "PGBCallback, on any accelerator."
        )
    if leaves_module_behind(trainer) and not follows:
        raise MisconfigurationException(
            f"PGBCallback: strategy={name} forks or spawns its processes, and loads the pruned weights back into "
            f"this process's {type(pl_module).__name__}, which must know how to take them: call "
            "pgb_lightning.follow_state_dict(self) in its __init__, or use strategy='ddp'."
        )


def leaves_module_behind(trainer: pl.Trainer) -> bool:
    """Tell strategies whose processes work on copies of the module, from which only a state dict comes back."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
