"""The module's own training loss, computed without leaving a trace in module or Trainer."""

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
    indices = count()
    # Lightning converts the module for a "true" precision only after the pruning; inputs wait for it.
    plugin = trainer.precision_plugin
    own = {parameter.dtype for parameter in module.parameters()}
    convert = plugin.convert_input if plugin.convert_input(torch.zeros(1)).dtype in own else _as_it_is

    def loss(batch: Any) -> Tensor:
        batch = convert(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)
        index = next(indices)
        try:
            output = step(batch, index) if takes_index else step(batch)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise MisconfigurationException(
                f"{type(module).__name__}.{step.__name__} failed on calibration batch {index}, outside the training "
                f"loop, where there is no optimizer yet and no on_train_... hook has run: {error}. Give the module a "
                "method calibration_step(self, batch) that only returns the loss."
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
    """Run a module's step without keeping what it logs, counts or stores.

    ``log`` and ``log_dict`` do nothing, and loggers are replaced by ones that write nothing. The module's plain
    attributes (with what is in their lists and dicts), its buffers and the states of its metrics are put back; the
    whole module is in eval mode.

    Args:
        module: The module.
    """
    before = {name: value for name, value in vars(module).items() if name not in _TORCH_ATTRIBUTES}
    kept = [*before.values(), *module.buffers(), *(child for child in module.modules() if isinstance(child, Metric))]
    met: set[int] = set()
    restorers = [_restorer(value, met) for value in kept]
    trainer = module._trainer
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
            del vars(module)[name]  # log and log_dict among them
        vars(module).update(before)
        for restore in restorers:
            restore()


#: What ``nn.Module`` keeps of its own: calibration changes none of it but hooks, which it removes.
_TORCH_ATTRIBUTES = frozenset(vars(torch.nn.Module()))


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``log`` and ``log_dict``."""


def _restorer(value: Any, met: set[int]) -> Callable[[], None]:
    """Return a function that gives a value the content it has now, keeping its identity.

    Args:
        value: The value.
        met: Identities of the values that have a restorer already; some contain themselves.
    """
    if id(value) in met:
        return lambda: None
    met.add(id(value))
    if isinstance(value, Metric):
        names = (*value._defaults, "_update_count", "_computed", "_forward_cache")
        state = copy.deepcopy({name: vars(value)[name] for name in names if name in vars(value)})
        return lambda: vars(value).update(state)
    if isinstance(value, Tensor):
        content = value.detach().clone()
        return partial(_set, value, content)
    if isinstance(value, (list, deque)):
        items = list(value)
        return _all(value.clear, partial(value.extend, items), *(_restorer(item, met) for item in items))
    if isinstance(value, (dict, set)):
        members = copy.copy(value)
        inner = value.values() if isinstance(value, dict) else ()
        return _all(value.clear, partial(value.update, members), *(_restorer(item, met) for item in inner))
    return lambda: None


def _set(tensor: Tensor, content: Tensor) -> None:
    tensor.data.copy_(content)


def _all(*steps: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run
