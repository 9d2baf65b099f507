"""The base class of the methods that train masks: their hooks during a fit, and common checks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from pgb_lightning.callbacks.wrapped_step import Step, wrap_training_step
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.model_calls import Call, outermost_models, record_calls
from pgb_lightning.surgery.checks import check_prunable


class Removable(Protocol):
    """A hook, or anything else that can be removed."""

    def remove(self) -> None:
        """Remove it."""


class MaskTraining(pl.Callback):
    """Train masks during a fit, and remove masked weights when it ends.

    A method overrides the hooks below. The masks are parameters of the callback, not of the module: they are not in the
    module's checkpoints, and have their own optimizer. After the fit, the module has smaller layers, or zeros in its
    weights, and no hooks.

    A fit uses one device, and cannot be resumed.

    Args:
        ratio: Fraction of the weights of the encoder's matrices to remove.

    Raises:
        MisconfigurationException: If ``ratio`` is out of range.
    """

    #: The encoder, dense until the fit ends.
    encoder: Encoder
    #: Optimizer of the masks, stepped with that of the module.
    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, ratio: float) -> None:
        super().__init__()
        if not 0 < ratio < 1:
            raise MisconfigurationException(f"ratio={ratio} is out of range. Use a fraction such as 0.5.")
        self.ratio = ratio
        #: Fraction of the fit that is over.
        self.progress = 0.0
        self.handles: list[Removable] = []
        self._undo: Any = None
        self._steps = 0
        self._is_training = False

    # ---- what a method overrides ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Prepare with the dense model, before it is moved to its device."""

    def start(self) -> None:
        """Create the masks on the model's device."""

    def before_forward(self) -> None:
        """Called before the training step of a batch."""

    def loss(self, task_loss: Tensor, call: Call) -> Tensor:
        """Return the loss to train with.

        Args:
            task_loss: The loss of the module's own step.
            call: The step's call of the model.
        """
        return task_loss

    def before_optimizer(self) -> None:
        """Called before each optimizer step, after all of its gradients are computed."""

    def after_optimizer(self) -> None:
        """Called after each optimizer step."""

    def finish(self) -> None:
        """Make the masks permanent. Called after the hooks are removed."""

    # ---- Lightning ------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the module and the Trainer, and wrap the training step."""
        if stage != "fit":
            return
        name = type(self).__name__
        if trainer.world_size > 1 or trainer.precision == "16-mixed":
            raise MisconfigurationException(
                f"{name}: devices={trainer.world_size} with precision={trainer.precision!r} is not supported. Use "
                "devices=1, and '32-true' or 'bf16-mixed'."
            )
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(f"{name}: automatic_optimization=False is not supported. Set it to True.")
        try:
            self.encoder = find_encoder(pl_module)
            check_prunable(self.encoder)
        except ValueError as error:
            raise MisconfigurationException(f"{name}: {error}") from error
        self.model = next(iter(outermost_models(pl_module, self.encoder)))
        self.prepare()
        self._undo = wrap_training_step(pl_module, partial(self._step, pl_module))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume a fit: the masks are not in the checkpoint."""
        if trainer.state.fn == TrainerFn.FITTING:
            raise MisconfigurationException(
                f"{type(self).__name__}: ckpt_path={str(trainer.ckpt_path)!r} has no masks, so the fit cannot be "
                "resumed. Start again from the dense model, without ckpt_path."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the masks."""
        self.progress, self._steps, self._is_training = 0.0, 0, True
        self.start()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Update the masks."""
        self.before_optimizer()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Call ``after_optimizer`` after each optimizer step; with gradient accumulation, not after every batch."""
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self.progress = min(self._steps / trainer.estimated_stepping_batches, 1.0)
            self.after_optimizer()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the masks permanent."""
        self._detach()
        self.finish()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove all hooks."""
        self._detach()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove all hooks."""
        self._detach()

    def _step(self, pl_module: pl.LightningModule, step: Step) -> Any:
        """Run ``training_step`` and return its output with the method's loss."""
        if not self._is_training:
            return step()
        self.before_forward()
        with record_calls(self.model) as calls:
            output = step()
        task_loss = output["loss"] if isinstance(output, Mapping) else output
        loss = self.loss(task_loss, calls[-1])
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _detach(self) -> None:
        self._is_training = False
        for handle in self.handles:
            handle.remove()
        self.handles = []
        if self._undo is not None:
            self._undo()
            self._undo = None
