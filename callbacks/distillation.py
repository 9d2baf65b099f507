"""Distill the dense model into the pruned one during re-finetuning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.callbacks.distilled_model import (
    Layers,
    are_indices,
    check_outputs,
    compared_layers,
    find_distilled,
    make_teacher,
)
from pgb_lightning.callbacks.label_free import LabelFreeStep
from pgb_lightning.callbacks.random_state import isolated_random_state
from pgb_lightning.callbacks.trainer_queries import shards_before_restore
from pgb_lightning.callbacks.wrapped_step import Step, wrap_training_step
from pgb_lightning.distillation import Teacher, TeacherCache, hidden_loss, logits_loss
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.label_kind import LossWatcher, resolve_exclusive
from pgb_lightning.model_calls import Call, record_calls
from pgb_lightning.surgery.checks import is_pruned


class Distillation(pl.Callback):
    """Re-finetune with the dense model as the teacher. No labels are needed.

    The teacher is a frozen copy of the transformers model, made when the fit starts and before ``PGBCallback`` prunes.
    The module's ``training_step`` needs no change: the loss that it returns is replaced by the weighted sum of two
    terms. The first is the divergence between the model's outputs (class scores, regression values, or start and end
    scores of answers) and the teacher's on the same inputs. The second is the distance between the hidden states of
    each layer. This sum is logged as ``train_distillation``. With ``task_weight``, the step's own loss is added to it.

    The outputs are those of the outermost transformers model that holds the encoder. Class scores are compared after a
    softmax if the labels are mutually exclusive, otherwise by their squared error, like regression values.

    With ``task_weight=0``, the step may fail because labels are missing, or return no loss, as long as it calls the
    model first. If it fails before it calls the model, the callback calls the model with the batch.

    The teacher is not part of the module or its checkpoints. A resumed fit needs the same teacher: start it, like the
    first fit, with a module that has the dense weights (``fine_tuned_ckpt``), or pass the dense checkpoint as
    ``teacher``.

    Args:
        temperature: Temperature that softens the class scores of model and teacher.
        task_weight: Weight of the loss that ``training_step`` returns; 0 trains on the teacher's answers only. Metrics
            that the step logs, such as ``train_loss``, are not affected by this weight.
        logits_weight: Weight of the divergence between the outputs; 0 disables it, and no head is trained then if
            ``task_weight`` is 0.
        hidden_weight: Weight of the distance between the hidden states; 0 disables it.
        layers: The layers whose hidden states are compared, with equal weight: ``"all"``, ``"last"``, or a list of
            indices from 0, in the order in which layers run.
        teacher: Lightning checkpoint of the dense module; by default the module as it is when the fit starts.
        encoder: Attribute path of the encoder, such as ``"model.bert"``; required if the module has several, or several
            models with heads share it.
        exclusive_labels: Whether each sample has one label (``True``), or independent labels or values (``False``). By
            default it is inferred from the ``problem_type`` of the model's configuration and from the loss function
            that ``training_step`` applies to the logits; if this is not possible, the first step raises an error.
        cache: Folder in which the teacher's answers are cached, so that later epochs, and later fits with this teacher,
            need not compute them. Rows are recognized by their tokens, so the cache does not help with random
            augmentation. The folder may be deleted at any time.
        cache_gb: Maximum size of the cache for one teacher, in GB. A token takes two bytes for each hidden unit of each
            compared layer; fewer ``layers``, or ``hidden_weight=0``, take less.

    Raises:
        MisconfigurationException: If a setting is invalid, there is no dense model to learn from, or ``task_weight`` is
            positive and there are no labels; the message names the remedy.

    Example:
        >>> trainer = pl.Trainer(callbacks=[Distillation(temperature=4.0)], logger=False, enable_progress_bar=False,
        ...                      enable_model_summary=False)
    """

    def __init__(
        self,
        temperature: float = 2.0,
        task_weight: float = 0.0,
        logits_weight: float = 1.0,
        hidden_weight: float = 1.0,
        layers: Layers = "all",
        teacher: str | Path | None = None,
        encoder: str | None = None,
        exclusive_labels: bool | None = None,
        cache: str | Path | None = None,
        cache_gb: float = 10.0,
    ) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise MisconfigurationException(f"Distillation: temperature={temperature!r} must be above 0, such as 2.0.")
        weights = {"task_weight": task_weight, "logits_weight": logits_weight, "hidden_weight": hidden_weight}
        for name, value in weights.items():
            if not 0 <= value < float("inf"):
                raise MisconfigurationException(f"Distillation: {name}={value!r} must be at least 0, such as 1.0.")
        if not logits_weight and not hidden_weight:
            raise MisconfigurationException(
                "Distillation: logits_weight=0 and hidden_weight=0 disable both losses. Set one of them above 0, or "
                "remove the callback."
            )
        if layers not in ("all", "last") and not are_indices(layers):
            raise MisconfigurationException(
                f"Distillation: layers={layers!r} must be 'all', 'last' or a list of different indices from 0, such as "
                "[2, 5]. Set hidden_weight=0 to compare no hidden states."
            )
        if teacher is not None and not Path(teacher).is_file():
            raise MisconfigurationException(
                f"Distillation: teacher={str(teacher)!r} is not a file. Pass the checkpoint of the dense module, or "
                "leave it out to use the module as it is when the fit starts."
            )
        if exclusive_labels not in (True, False, None):
            raise MisconfigurationException(
                f"Distillation: exclusive_labels={exclusive_labels!r} must be True, False or None."
            )
        if not 0 < cache_gb < float("inf"):
            raise MisconfigurationException(f"Distillation: cache_gb={cache_gb!r} must be above 0, such as 10.0.")
        self.temperature = temperature
        self.task_weight = task_weight
        self.logits_weight = logits_weight
        self.hidden_weight = hidden_weight
        self.layers = layers
        self.teacher_path = teacher
        self.encoder = encoder
        self.exclusive_labels = exclusive_labels
        self.cache = cache
        self.cache_gb = cache_gb
        self.teacher: Teacher | None = None
        self._cached: TeacherCache | None = None
        self._exclusive: bool | None = None
        self._training = False
        self._resumed_fingerprint: str | None = None
        self._undo: Callable[[], None] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the teacher while the module is still dense."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"Distillation: {type(pl_module).__name__} has automatic_optimization=False, so the loss that its "
                "training_step returns is not used. Use automatic optimization."
            )
        if shards_before_restore(trainer):
            raise MisconfigurationException(
                f"Distillation: strategy={type(trainer.strategy).__name__} shards the model, so its layers cannot be "
                "compared with the teacher's. Use one device or strategy='ddp'."
            )
        model, encoder_path = find_distilled(pl_module, self.encoder)
        check_outputs(trainer, pl_module, model, encoder_path, self.logits_weight, self.task_weight)
        if not is_pruned(find_encoder(model, encoder_path)) or self.teacher_path is not None:
            with isolated_random_state():
                self.teacher = make_teacher(pl_module, model, encoder_path, self.teacher_path)
        elif self.teacher is None:
            raise MisconfigurationException(
                "Distillation: the module is already pruned, so there is no dense model to copy. Pass the dense "
                "checkpoint: Distillation(teacher='fine_tuned.ckpt')."
            )
        else:
            rank_zero_info("Distillation: the module is already pruned. The teacher is that of the earlier fit.")
        self._unwrap()
        self._exclusive = self.exclusive_labels
        self._resumed_fingerprint = None  # An earlier fit may have failed after it read a checkpoint.
        self._labels = LabelFreeStep(type(pl_module).__name__, self.task_weight)
        self._undo = wrap_training_step(pl_module, partial(self._step, pl_module, model, encoder_path))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the fingerprint of the teacher that the resumed fit used."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.state.fn == TrainerFn.FITTING:
            self._resumed_fingerprint = state["teacher"]

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's fingerprint, to be stored in the checkpoint; the teacher is not."""
        return {"teacher": self.teacher.fingerprint if self.teacher else None}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wrap ``training_step`` to return the distillation loss."""
        assert self.teacher is not None
        before, self._resumed_fingerprint = self._resumed_fingerprint, None
        if before is not None and before != self.teacher.fingerprint:
            raise MisconfigurationException(
                "Distillation: ckpt_path was saved by a fit with another teacher than this module's initial weights. "
                "Build the module from the dense checkpoint (fine_tuned_ckpt of TextClassification and "
                "QuestionAnswering), or pass it: Distillation(teacher='fine_tuned.ckpt')."
            )
        model, encoder_path = find_distilled(pl_module, self.encoder)
        self._compared, self._runs = compared_layers(
            model, encoder_path, self.teacher, self.layers if self.hidden_weight else []
        )
        self.teacher.model.to(device=pl_module.device, dtype=model.dtype)  # type: ignore[call-arg]
        if self.cache is not None:
            self._cached = self._open_cache(trainer, model)
        self._training = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Share the teacher's answers of this epoch with the other processes."""
        if self._cached is not None:
            self._cached.store.flush()
            trainer.strategy.barrier()
            self._cached.store.refresh()
            self._cached.end_epoch()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the cached answers of the teacher, so that a resumed fit finds them."""
        if self._cached is not None:
            self._cached.store.flush()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the module's own ``training_step``."""
        self._unwrap()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the module's own ``training_step``."""
        self._unwrap()

    def loss(self, call: Call) -> Tensor:
        """Return the distillation loss of one call of the model: the weighted sum of both terms.

        Raises:
            MisconfigurationException: If ``logits_weight`` is not 0 but the model returned no logits.
        """
        assert self.teacher is not None
        call = call.after(self._compared, self._runs)
        target = self._answer(call) if self._cached is None else self._cached.answer(call)
        loss: Tensor | float = 0.0
        if self.logits_weight:
            if not call.logits():
                raise MisconfigurationException(
                    f"Distillation: logits_weight={self.logits_weight} needs logits, but "
                    f"{type(self.teacher.model).__name__} returned none by name: it was called with return_dict=False, "
                    "or its class has none. Set logits_weight=0 to learn from hidden states only."
                )
            exclusive = self._resolve(self.teacher.model, call) if self._exclusive is None else self._exclusive
            loss = loss + self.logits_weight * logits_loss(call, target, self.temperature, exclusive)
        if self.hidden_weight:
            loss = loss + self.hidden_weight * hidden_loss(call, target)
        assert isinstance(loss, Tensor)
        if not loss.isfinite() and not target.is_valid():
            raise MisconfigurationException(
                f"Distillation: the outputs or hidden states of the teacher, {type(self.teacher.model).__name__}, are "
                "NaN or infinite for this batch. Use a precision with a larger range, such as 'bf16-mixed' instead of "
                "'16-mixed', or pass another checkpoint as teacher."
            )
        return loss

    def _answer(self, call: Call) -> Call:
        """Run the teacher on the arguments of a call."""
        assert self.teacher is not None
        return self.teacher.run(call, encoder_only=not self.logits_weight).after(self._compared, self._runs)

    def _open_cache(self, trainer: pl.Trainer, model: PreTrainedModel) -> TeacherCache:
        """Return the cache of the teacher's outputs that the losses need."""
        assert self.teacher is not None
        kept = (type(model).__name__, bool(self.logits_weight), self._compared, str(trainer.precision))
        name = f"{self.teacher.fingerprint}-{hashlib.sha256(repr(kept).encode()).hexdigest()[:8]}"
        called = self.teacher.called(encoder_only=not self.logits_weight)
        return TeacherCache(Path(str(self.cache)) / name, int(self.cache_gb * 1e9), called, self._answer)

    def _step(self, pl_module: pl.LightningModule, model: PreTrainedModel, encoder_path: str, step: Step) -> Any:
        """Run ``training_step`` and return its output with the sum of the losses.

        Before training starts, as during calibration, only determine the kind of labels.
        """
        watches = bool(self.logits_weight) and self._exclusive is None
        if not (self._training or watches):
            return step()
        encoder = find_encoder(model, encoder_path)
        called = model if self.logits_weight else encoder.model
        with (
            record_calls(called, encoder_path if self.logits_weight else None) as calls,
            LossWatcher() if watches else nullcontext() as watcher,
        ):
            output = self._labels.run(step, called, calls) if self._training else step()
        is_frozen = not any(parameter.requires_grad for parameter in encoder.stack.parameters())
        trained = [call for call in calls if call.hidden and call.has_gradients(logits_only=is_frozen)]
        if watches and trained and (self._training or output is not None):
            self._exclusive = self._resolve(model, trained[0], watcher)
        if not self._training:
            return output
        task_loss = output.get("loss") if isinstance(output, Mapping) else output
        if task_loss is None and not self._labels.goes_without(step, called, was_trained=bool(trained)):
            return output  # Lightning skips a batch without an output, and refuses one without a loss.
        if not trained:
            raise MisconfigurationException(
                f"Distillation: {type(pl_module).__name__}.training_step did not call {type(called).__name__} with "
                "gradients enabled, so there is nothing to compare with the teacher. Call the whole model, not its "
                "submodules, and use gradient checkpointing with use_reentrant=False."
            )
        loss = sum((self.loss(call) for call in trained), start=0.0) / len(trained)
        pl_module.log("train_distillation", loss, batch_size=len(trained[0].hidden[-1]))
        if self.task_weight and task_loss is not None:
            loss = loss + self.task_weight * task_loss
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _resolve(self, model: PreTrainedModel, call: Call, watcher: LossWatcher | None = None) -> bool:
        """Return whether the labels are mutually exclusive."""
        logits = call.logits().get("logits")
        if logits is None:
            return True
        try:
            return resolve_exclusive(model, logits, None if watcher is None else watcher.exclusive([logits]))
        except ValueError as error:
            raise MisconfigurationException(f"Distillation: {error}") from error

    def _unwrap(self) -> None:
        self._training = False
        if self._cached is not None:
            self._cached.store.close()
            self._cached = None
        if self._undo is not None:
            self._undo()
            self._undo = None
