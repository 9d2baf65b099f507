"""Hook into the Trainer's strategy: prune between restoring a checkpoint and creating the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.callbacks.trainer_queries import shards_before_restore
from pgb_lightning.checkpoints import load_checked
from pgb_lightning.surgery.from_state_dict import StructureError

#: Attribute of a strategy that holds its hook.
_HOOK = "_pgb_hook"


def before_strategy_setup(trainer: pl.Trainer, action: Callable[[bool], None]) -> None:
    """Run ``action`` once, after a checkpoint is restored and before the model is wrapped and the optimizer created.

    Lightning has no hook there. ``Callback.setup`` runs before it is known whether a checkpoint will be restored; in
    ``on_fit_start`` the optimizer and DDP already hold the old parameters. ``Strategy.setup`` runs in between, so it is
    wrapped on this strategy object, for one call. The methods that read and load the checkpoint are wrapped as well, to
    raise clear errors. Strategies that shard the model restore it later, into its final shapes; their loading methods
    are left alone.

    Args:
        trainer: The Trainer whose fit, validation, test or prediction is being set up.
        action: Function to run; its argument is whether a checkpoint was restored.
    """
    restore_strategy(trainer)  # A previous run may have failed before its strategy was set up.
    hook = _StrategyHook(trainer.strategy)
    restored = False

    def setup(original: Callable[..., Any], trainer: pl.Trainer) -> None:
        hook.remove()
        action(restored)
        original(trainer)

    def load_checkpoint(original: Callable[..., Any], checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load_checked(checkpoint_path, lambda: original(checkpoint_path, *args, **kwargs))
        except ValueError as error:
            raise MisconfigurationException(f"ckpt_path={error}") from error

    def load_model_state_dict(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        nonlocal restored
        try:
            original(*args, **kwargs)
            restored = True
        except StructureError as error:
            raise MisconfigurationException(f"ckpt_path does not fit the module: {error}") from error

    hook.wrap("setup", setup)
    if not shards_before_restore(trainer):
        hook.wrap("load_checkpoint", load_checkpoint)
        hook.wrap("load_model_state_dict", load_model_state_dict)


def restore_strategy(trainer: pl.Trainer) -> None:
    """Undo :func:`before_strategy_setup`. Does nothing if the strategy is not wrapped."""
    hook = vars(trainer.strategy).get(_HOOK)
    if hook is not None:
        hook.remove()


class _StrategyHook:
    """Wrappers around methods of a strategy object, which can be removed again.

    Another library may wrap the same methods, before or after. Its wrappers are kept: a method is restored only if the
    outermost wrapper is ours. Otherwise our wrapper stays in the chain and passes calls through.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._active = True
        self._wrappers: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {}
        setattr(strategy, _HOOK, self)

    def wrap(self, name: str, replacement: Callable[..., Any]) -> None:
        """Replace a method by ``replacement(original, *args, **kwargs)`` until the hook is removed."""
        original = getattr(self._strategy, name)

        @wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs) if self._active else original(*args, **kwargs)

        self._wrappers[name] = (wrapper, vars(self._strategy).get(name))
        setattr(self._strategy, name, wrapper)

    def remove(self) -> None:
        """Restore the methods that are still wrapped by this hook alone, and deactivate the other wrappers."""
        self._active = False
        attributes = vars(self._strategy)
        if attributes.get(_HOOK) is self:
            del attributes[_HOOK]
        for name, (wrapper, previous) in self._wrappers.items():
            if attributes.get(name) is wrapper:
                del attributes[name]
                if previous is not None:
                    attributes[name] = previous
