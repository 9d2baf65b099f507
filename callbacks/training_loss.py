"""The module's own training loss, computed without leaving a trace in module or Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from pgb_lightning.modes import eval_mode


def check_training_step(module: pl.LightningModule) -> None:
    """Require a loss that can be asked for outside the training loop.

    Raises:
        MisconfigurationException: The module steps its optimizers itself and has no ``calibration_step``.
    """
    if not module.automatic_optimization and not hasattr(module, "calibration_step"):
        raise MisconfigurationException(
            f"{type(module).__name__} has automatic_optimization=False, so its training_step would step the "
            "optimizer during calibration; give it a method calibration_step(self, batch) that only returns the "
            "loss."
        )


def training_loss(trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Any], Tensor]:
    """Make a function that returns the loss of a batch as ``training_step`` (or ``calibration_step``) does.

    Args:
        trainer: The Trainer; its strategy says how batches reach the device.
        module: The module. Call the function within :func:`undisturbed`.

    Returns:
        A function of a batch on the CPU.
    """
    step = getattr(module, "calibration_step", module.training_step)
    takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    counter = iter(range(2**63 - 1))

    def loss(batch: Any) -> Tensor:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)
        index = next(counter)
        try:
            output = step(batch, index) if takes_index else step(batch)
        except (AttributeError, IndexError, TypeError) as error:
            raise MisconfigurationException(
                f"{type(module).__name__}.{step.__name__} failed on calibration batch {index}, outside the training "
                f"loop, where there is no optimizer yet and no on_train_... hook has run: {error}. Give the module a method "
                "calibration_step(self, batch) that only returns the loss."
            ) from error
        value = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(value, Tensor):
            raise MisconfigurationException(
                f"{type(module).__name__}.{step.__name__} returned {type(output).__name__} for calibration batch "
                f"{index}, but calibration needs a loss: return a tensor, or a dict with a tensor 'loss'."
            )
        return value

    return loss


@contextmanager
def undisturbed(module: pl.LightningModule) -> Iterator[None]:
    """Run a module's step without keeping what it logs, counts or appends.

    ``log`` and ``log_dict`` do nothing; the module's plain attributes (counters, lists, dicts) and the states of
    its metrics are put back; the whole module is in eval mode.

    Args:
        module: The module.
    """
    attributes = {
        name: (value, copy.copy(value))
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, list, dict, set)) and name not in _TORCH_ATTRIBUTES
    }
    metrics = {metric: _metric_state(metric) for metric in module.modules() if isinstance(metric, Metric)}
    module.log = module.log_dict = _ignore  # type: ignore[method-assign]
    try:
        with eval_mode(module):
            yield
    finally:
        del module.log, module.log_dict
        for name, (value, before) in attributes.items():
            _refill(value, before)
            vars(module)[name] = value
        for metric, state in metrics.items():
            vars(metric).update(state)


#: What ``nn.Module`` keeps of its own: calibration changes none of it but hooks, which it removes.
_TORCH_ATTRIBUTES = frozenset(vars(torch.nn.Module()))


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``log`` and ``log_dict``."""


def _metric_state(metric: Metric) -> dict[str, Any]:
    """Copy what an update of a metric changes."""
    bookkeeping = {name: vars(metric)[name] for name in ("_update_count", "_computed", "_forward_cache")}
    return {**copy.deepcopy({name: getattr(metric, name) for name in metric._defaults}), **bookkeeping}


def _refill(value: Any, before: Any) -> None:
    """Put a container's content back, keeping its identity."""
    if isinstance(value, list):
        value[:] = before
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(before)
