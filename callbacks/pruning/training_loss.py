"""Compute the module's own training loss without side effects on the module or the Trainer."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from pgb_lightning._compat import before_batch_transfer, metric_state
from pgb_lightning.modes import eval_mode


def check_training_step(module: pl.LightningModule) -> None:
    """Require a loss that can be computed outside the training loop.

    Raises:
        MisconfigurationException: If the module uses manual optimization and has no ``calibration_step``.
    """
    if not module.automatic_optimization and not hasattr(module, "calibration_step"):
        raise MisconfigurationException(
            f"{type(module).__name__} has automatic_optimization=False, so its training_step would step the optimizer "
            "during calibration. Add a method calibration_step(self, batch) that only returns the loss."
        )


def training_loss(trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Any], Tensor]:
    """Return a function that computes the loss of a batch with ``calibration_step``, else ``training_step``.

    Args:
        trainer: The Trainer; its strategy moves batches to the device.
        module: The module. Call the returned function inside :func:`without_side_effects`.

    Returns:
        A function of a batch on the CPU.
    """
    step = getattr(module, "calibration_step", module.training_step)
    takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    indices = count()
    # Lightning converts the module to a "true" precision only after the pruning. Do not convert inputs before.
    plugin = trainer.precision_plugin
    converts = plugin.convert_input(torch.zeros(1)).dtype in {parameter.dtype for parameter in module.parameters()}

    def loss(batch: Any) -> Tensor:
        batch = plugin.convert_input(batch) if converts else batch
        batch = before_batch_transfer(module, batch)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        index = next(indices)
        try:
            output = step(batch, index) if takes_index else step(batch)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise MisconfigurationException(
                f"{type(module).__name__}.{step.__name__} failed on calibration batch {index}: {error}. Calibration "
                "runs outside the training loop, before the optimizer exists and before any on_train_... hook. Add a "
                "method calibration_step(self, batch) that only returns the loss."
            ) from error
        value = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(value, Tensor):
            raise MisconfigurationException(
                f"{type(module).__name__}.{step.__name__} returned {type(output).__name__} for calibration batch "
                f"{index}, but calibration needs a loss. Return a tensor, or a dict with a tensor 'loss'."
            )
        return value

    return loss


@contextmanager
def without_side_effects(module: pl.LightningModule) -> Iterator[None]:
    """Discard what a module's step logs, counts or stores inside the ``with`` block.

    ``log`` and ``log_dict`` do nothing, and loggers are replaced by dummies. On exit the module's plain attributes
    (including the contents of lists, dicts and sets), its buffers and the states of its metrics are restored. The whole
    module is in eval mode inside the block.

    Args:
        module: The module.
    """
    before = {name: value for name, value in vars(module).items() if name not in _TORCH_ATTRIBUTES}
    stored = [*before.values(), *module.buffers(), *(child for child in module.modules() if isinstance(child, Metric))]
    visited: set[int] = set()
    restorers = [_make_restorer(value, visited) for value in stored]
    trainer = _attached_trainer(module)
    loggers = list(trainer.loggers) if trainer is not None else []
    module.log = module.log_dict = _ignore  # type: ignore[method-assign]
    try:
        if trainer is not None:
            trainer.loggers = [DummyLogger() for _ in loggers]
        with eval_mode(module):
            yield
    finally:
        if trainer is not None:
            trainer.loggers = loggers
        for name in vars(module).keys() - before.keys() - _TORCH_ATTRIBUTES:
            del vars(module)[name]  # including log and log_dict
        vars(module).update(before)
        for restore in restorers:
            restore()


#: Attributes of ``nn.Module`` itself. Calibration changes only hooks among them, and removes those itself.
_TORCH_ATTRIBUTES = frozenset(vars(torch.nn.Module()))


def _attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """Return the module's Trainer, or ``None`` where it has none."""
    try:
        return module.trainer
    except RuntimeError:
        return None


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Replace ``log`` and ``log_dict``."""


def _make_restorer(value: Any, visited: set[int]) -> Callable[[], None]:
    """Return a function that restores the present content of a value, in place.

    Args:
        value: The value.
        visited: Identities of the values that already have a restorer; values may contain themselves.
    """
    if id(value) in visited:
        return lambda: None
    visited.add(id(value))
    if isinstance(value, Metric):
        state = copy.deepcopy(metric_state(value))
        return lambda: vars(value).update(state)
    if isinstance(value, Tensor):
        content = value.detach().clone()
        return partial(_copy_into, value, content)
    if isinstance(value, (list, deque)):
        items = list(value)
        inner = [_make_restorer(item, visited) for item in items]
        return partial(_run_all, [value.clear, partial(value.extend, items), *inner])
    if isinstance(value, (dict, set)):
        members = copy.copy(value)
        inner = [_make_restorer(item, visited) for item in (value.values() if isinstance(value, dict) else ())]
        return partial(_run_all, [value.clear, partial(value.update, members), *inner])
    return lambda: None


def _copy_into(tensor: Tensor, content: Tensor) -> None:
    tensor.data.copy_(content)


def _run_all(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()
