"""Compute the module's own training loss without side effects on the module or the Trainer."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from pgb_lightning._compat import before_batch_transfer
from pgb_lightning.callbacks.pruning.saved_state import save_dict
from pgb_lightning.callbacks.pruning.snapshot import Snapshot


class StepError(MisconfigurationException):
    """Raised if a module's step fails or returns no loss."""


def check_training_step(module: pl.LightningModule) -> None:
    """Check that the loss can be computed outside the training loop.

    Raises:
        MisconfigurationException: If the module has no ``calibration_step``, and uses manual optimization or reads its
            batches itself.
    """
    if hasattr(module, "calibration_step"):
        return
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise MisconfigurationException(
            f"{type(module).__name__}.training_step(dataloader_iter) reads its batches itself, so calibration cannot "
            "give it a batch. Add a method calibration_step(self, batch) that only returns the loss."
        )
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{type(module).__name__} has automatic_optimization=False, so its training_step would step the optimizer "
            "during calibration. Add a method calibration_step(self, batch) that only returns the loss."
        )


def batch_preparation(trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Any], Any]:
    """Return a function that copies a batch and moves it to the device, as Lightning does before ``training_step``.

    Args:
        trainer: The Trainer; its strategy moves batches to the device.
        module: The module, with its batch hooks.
    """
    # Lightning converts the module to a "true" precision only after pruning, so inputs must not be converted here.
    plugin = trainer.precision_plugin
    converts = plugin.convert_input(torch.zeros(1)).dtype in {parameter.dtype for parameter in module.parameters()}

    def prepare(batch: Any) -> Any:
        batch = _copy_tensors(batch)
        batch = plugin.convert_input(batch) if converts else batch
        batch = before_batch_transfer(module, batch)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    return prepare


def training_loss(module: pl.LightningModule) -> Callable[[Any], Tensor | None]:
    """Return a function that computes the loss of a batch with ``calibration_step``, else ``training_step``.

    Args:
        module: The module. Call the returned function inside :func:`without_side_effects`.

    Returns:
        A function of a prepared batch. If the step returns ``None``, it returns ``None``, which skips the batch.
    """
    step = getattr(module, "calibration_step", module.training_step)
    takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    indices = count()

    def loss(batch: Any) -> Tensor | None:
        index = next(indices)
        try:
            output = step(batch, index) if takes_index else step(batch)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise StepError(
                f"{type(module).__name__}.{step.__name__} failed on calibration batch {index} with "
                f"{type(error).__name__}: {error}. Calibration runs outside the training loop, before the optimizer "
                "exists and before any on_train_... hook. Add a method calibration_step(self, batch) that only returns "
                "the loss or, if labels are missing, set fisher='predictions' or 'outputs'."
            ) from error
        if output is None:
            return None  # as in training
        value = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(value, Tensor):
            raise StepError(
                f"{type(module).__name__}.{step.__name__} returned {type(output).__name__} for calibration batch "
                f"{index}, but calibration needs a loss. Return a tensor, a dict with a tensor 'loss', or None to "
                "skip the batch."
            )
        return value

    return loss


def _copy_tensors(batch: Any) -> Any:
    """Copy a batch, so that hooks and steps with in-place operations do not change the rows of the data set."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if type(batch) in (list, tuple):
        return type(batch)(map(_copy_tensors, batch))
    if type(batch) is dict:
        return {key: _copy_tensors(value) for key, value in batch.items()}
    try:
        return copy.deepcopy(batch)  # such as a named tuple, a dataclass or a BatchEncoding
    except Exception:  # An object that cannot be copied is used as it is.
        return batch


@contextmanager
def without_side_effects(module: pl.LightningModule) -> Iterator[Snapshot]:
    """Discard what a module's step logs, counts, moves or stores inside the ``with`` block.

    ``log`` and ``log_dict`` do nothing, and loggers are replaced by dummies. The whole module is in eval mode. On exit,
    also after an error, all objects that can be reached from the module and its data module are restored, as are the
    global random states and the attributes of the Trainer: see :class:`Snapshot`. A warning names the objects that
    cannot be restored.

    Args:
        module: The module.

    Yields:
        The snapshot, to which other objects can be added that calibration will use.
    """
    trainer = _attached_trainer(module)
    datamodule = getattr(trainer, "datamodule", None)
    # The functions are methods of the global generators. Each CUDA device has one as well.
    random_states = [torch.default_generator, *torch.cuda.default_generators, random.getstate, np.random.get_state]
    snapshot = Snapshot(
        {type(module).__name__: module, "random": random_states}, data={type(datamodule).__name__: datamodule}
    )
    restore_trainer = save_dict(vars(trainer)) if trainer is not None else lambda: None
    try:
        module.log = module.log_dict = _ignore  # type: ignore[method-assign]
        if trainer is not None:
            trainer.loggers = [DummyLogger() for _ in trainer.loggers]
        module.eval()
        yield snapshot
    finally:
        restore_trainer()
        changed = snapshot.restore()
        if changed:
            rank_zero_warn(
                f"PGB: calibration has changed {', '.join(changed[:5])}, which cannot be restored: training continues "
                "from the changed state. To avoid this, add a method calibration_step(self, batch) to the module that "
                "only returns the loss of a batch, or name other data with PGBCallback(calibration=...)."
            )


def _attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """Return the module's Trainer, or ``None`` if it has none."""
    try:
        return module.trainer
    except RuntimeError:
        return None


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Replace ``log`` and ``log_dict``."""
