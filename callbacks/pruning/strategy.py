"""Hook into the Trainer's strategy: prune between restoring a checkpoint and creating the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.callbacks.pruning.optimizers import Parameters, list_parameters, update_optimizers
from pgb_lightning.callbacks.trainer_queries import shards_before_restore
from pgb_lightning.checkpoints import load_checked
from pgb_lightning.surgery.from_state_dict import StructureError, find_missing_encoder

#: Attribute of a strategy that holds its hook.
_HOOK = "_pgb_hook"


@dataclass(frozen=True)
class Restored:
    """The checkpoint that a Trainer restored.

    Args:
        step: Its global step.
        trained: Whether training had begun. If not, as when a fit is interrupted during calibration, the checkpoint
            has no optimizer state, and a fit that starts from it can prune.
    """

    step: int
    trained: bool


#: Action of a callback before the strategy is set up; the argument is the checkpoint that was restored, if any.
Action = Callable[[Restored | None], None]


def before_strategy_setup(trainer: pl.Trainer, callback: pl.Callback, action: Action) -> None:
    """Run ``action`` once, after a checkpoint is restored and before the model is wrapped and the optimizer created.

    Lightning has no hook at this point. ``Callback.setup`` runs before it is known whether a checkpoint will be
    restored, and in ``on_fit_start`` the optimizer and DDP already hold the old parameters. ``Strategy.setup`` runs in
    between, so it is wrapped on this strategy object, for one call. The methods that read and load the checkpoint are
    wrapped as well, to raise clear errors. Strategies that shard the model restore it later, into its final shapes;
    their loading methods are not wrapped.

    Several callbacks can each register an action. The actions run in the order of registration, which is that of the
    Trainer's callbacks.

    Args:
        trainer: The Trainer whose fit, validation, test or prediction is being set up.
        callback: The callback that is being set up. Its action from an earlier run, which may have failed before the
            strategy was set up, is replaced. Actions of callbacks that were since removed from the Trainer do not run.
        action: Function to run; its argument is the checkpoint that was restored, if any.
    """
    hook = vars(trainer.strategy).get(_HOOK) or _StrategyHook(trainer)
    hook.add(trainer, callback, action)


def restore_strategy(trainer: pl.Trainer) -> None:
    """Undo :func:`before_strategy_setup` for all callbacks. Does nothing if the strategy is not wrapped."""
    hook = vars(trainer.strategy).get(_HOOK)
    if hook is not None:
        hook.remove()


def _is_listed(trainer: pl.Trainer, callback: pl.Callback) -> bool:
    """Return whether a callback is in the Trainer's list, and not only called by another callback."""
    return any(each is callback for each in trainer.callbacks)  # type: ignore[attr-defined]


class _Registered(NamedTuple):
    """The action of a callback, and whether the callback was one of the Trainer's when it was set up."""

    callback: pl.Callback
    action: Action
    was_listed: bool


class _StrategyHook:
    """Wrappers around methods of a strategy object, which can be removed again, and the actions that they run.

    Another library may wrap the same methods before or after. Its wrappers are kept: a method is restored only if the
    outermost wrapper is this one. Otherwise, this wrapper stays in the chain and passes calls through.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._strategy = trainer.strategy
        self._active = True
        self._restored: Restored | None = None
        self._actions: list[_Registered] = []
        self._parameters: Parameters = {}
        self._wrappers: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {}
        setattr(self._strategy, _HOOK, self)
        self._wrap("setup", self._setup)
        if not shards_before_restore(trainer):
            self._wrap("load_checkpoint", self._load_checkpoint)
            self._wrap("load_model_state_dict", self._load_model_state_dict)

    def add(self, trainer: pl.Trainer, callback: pl.Callback, action: Action) -> None:
        """Set a callback's action for the run that is being set up, before a checkpoint is restored."""
        self._restored = None
        module = self._strategy.lightning_module
        self._parameters = {} if module is None else list_parameters(module)
        others = [each for each in self._actions if each.callback is not callback]
        self._actions = [*others, _Registered(callback, action, _is_listed(trainer, callback))]

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

    def _wrap(self, name: str, replacement: Callable[..., Any]) -> None:
        """Replace a method by ``replacement(original, *args, **kwargs)`` until the hook is removed."""
        original = getattr(self._strategy, name)

        @wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs) if self._active else original(*args, **kwargs)

        self._wrappers[name] = (wrapper, vars(self._strategy).get(name))
        setattr(self._strategy, name, wrapper)

    def _setup(self, original: Callable[..., Any], trainer: pl.Trainer) -> None:
        """Run the actions, then set up the strategy and give its optimizers the new parameters."""
        self.remove()
        actions, self._actions = self._actions, []
        for each in actions:
            if _is_listed(trainer, each.callback) or not each.was_listed:
                each.action(self._restored)
        original(trainer)
        if self._parameters:
            update_optimizers(trainer, trainer.lightning_module, self._parameters)

    def _load_checkpoint(self, original: Callable[..., Any], checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a checkpoint, with a clear error for a file that cannot be read."""
        try:
            return load_checked(checkpoint_path, lambda: original(checkpoint_path, *args, **kwargs))
        except ValueError as error:
            raise MisconfigurationException(f"ckpt_path={error}") from error

    def _load_model_state_dict(
        self, original: Callable[..., Any], checkpoint: Mapping[str, Any], strict: bool = True
    ) -> None:
        """Load a checkpoint's weights, with a clear error if they do not fit."""
        try:
            original(checkpoint, strict=strict)
            step, epoch = checkpoint.get("global_step", 0), checkpoint.get("epoch", 0)
            self._restored = Restored(step, trained=bool(checkpoint.get("optimizer_states") or step or epoch))
        except RuntimeError as error:  # torch lists all missing entries; report a missing encoder instead
            module = self._strategy.lightning_module
            assert module is not None
            reason = find_missing_encoder(module, checkpoint["state_dict"]) or error
            raise MisconfigurationException(f"ckpt_path does not fit the module: {reason}") from error
        except StructureError as error:
            raise MisconfigurationException(f"ckpt_path does not fit the module: {error}") from error
