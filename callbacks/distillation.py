"""Distill the dense model into the pruned one during re-finetuning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.callbacks.trainer_queries import shards_before_restore
from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.distillation import Call, Teacher, hidden_loss, logits_loss, record_calls
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.wrappers import join_path
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.dense_twin import dense_twin


class Distillation(pl.Callback):
    """Add a distillation loss to the training loss, with the dense model as the teacher.

    The teacher is a frozen copy of the transformers model, made when the fit starts and before ``PGBCallback`` prunes.
    The module's ``training_step`` needs no change: two terms are added to the loss that it returns. The first is the
    divergence between the model's outputs (class scores, regression values, or start and end scores of answers) and
    the teacher's on the same inputs. The second is the distance between the hidden states of each layer. Their weighted
    sum is logged as ``train_distillation``.

    The teacher is not part of the module or its checkpoints. A resumed fit needs the same teacher: start it, like the
    first fit, with a module that has the dense weights (``fine_tuned_ckpt``), or pass the dense checkpoint as
    ``teacher``.

    Args:
        temperature: Temperature that softens the class scores of model and teacher.
        logits_weight: Weight of the divergence between the outputs; 0 disables it.
        hidden_weight: Weight of the distance between the hidden states; 0 disables it.
        teacher: Lightning checkpoint of the dense module; by default the module as it is when the fit starts.
        encoder: Attribute path of the encoder, such as ``"model.bert"``; required if the module has several.

    Raises:
        MisconfigurationException: If a setting is invalid, or there is no dense model to learn from; the message names
            the remedy.

    Example:
        >>> trainer = pl.Trainer(callbacks=[Distillation(temperature=4.0)], logger=False, enable_progress_bar=False,
        ...                      enable_model_summary=False)
    """

    def __init__(
        self,
        temperature: float = 2.0,
        logits_weight: float = 1.0,
        hidden_weight: float = 1.0,
        teacher: str | Path | None = None,
        encoder: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise MisconfigurationException(f"Distillation: temperature={temperature!r} must be above 0, such as 2.0.")
        for name, value in {"logits_weight": logits_weight, "hidden_weight": hidden_weight}.items():
            if not 0 <= value < float("inf"):
                raise MisconfigurationException(f"Distillation: {name}={value!r} must be at least 0, such as 1.0.")
        if not logits_weight and not hidden_weight:
            raise MisconfigurationException(
                "Distillation: logits_weight=0 and hidden_weight=0 disable both losses. Set one of them above 0, or "
                "remove the callback."
            )
        if teacher is not None and not Path(teacher).is_file():
            raise MisconfigurationException(
                f"Distillation: teacher={str(teacher)!r} is not a file. Pass the checkpoint of the dense module, or "
                "leave it out to use the module as it is when the fit starts."
            )
        self.temperature = temperature
        self.logits_weight = logits_weight
        self.hidden_weight = hidden_weight
        self.teacher_path = teacher
        self.encoder = encoder
        self.teacher: Teacher | None = None
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
        name, model = self._find(pl_module)
        if self.logits_weight and _has_no_head(model):
            raise MisconfigurationException(
                f"Distillation: logits_weight={self.logits_weight} needs logits, but {type(model).__name__} has no "
                "head; the module's head is outside the transformers model. Set logits_weight=0 to learn from hidden "
                "states only, or use a transformers model with a head."
            )
        if is_pruned(find_encoder(pl_module, self.encoder)) and self.teacher_path is None:
            if self.teacher is None:
                raise MisconfigurationException(
                    "Distillation: the module is already pruned, so there is no dense model to copy. Pass the dense "
                    "checkpoint: Distillation(teacher='fine_tuned.ckpt')."
                )
            return  # Keep the teacher of the earlier fit.
        with isolate_rng():
            self.teacher = self._make_teacher(name, model)

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
        """Wrap ``training_step``, so that it returns the sum of the losses."""
        assert self.teacher is not None
        before, self._resumed_fingerprint = self._resumed_fingerprint, None
        if before is not None and before != self.teacher.fingerprint:
            raise MisconfigurationException(
                "Distillation: ckpt_path was saved by a fit with another teacher than this module's initial weights. "
                "Build the module from the dense checkpoint (fine_tuned_ckpt of TextClassification and "
                "QuestionAnswering), or pass it: Distillation(teacher='fine_tuned.ckpt')."
            )
        _, model = self._find(pl_module)
        self._check_layers(model)
        self.teacher.model.to(device=pl_module.device, dtype=model.dtype)  # type: ignore[call-arg]
        self._wrap(pl_module, model)

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
        target = self.teacher.run(call)
        loss = call.hidden[-1].new_zeros(())
        if self.logits_weight:
            if not call.logits():
                raise MisconfigurationException(
                    f"Distillation: logits_weight={self.logits_weight} needs logits, but "
                    f"{type(self.teacher.model).__name__} returned none by name: it was called with return_dict=False, "
                    "or its class has none. Set logits_weight=0 to learn from hidden states only."
                )
            kind = getattr(self.teacher.model.config, "problem_type", None)
            exclusive = kind in (None, "single_label_classification")
            loss = loss + self.logits_weight * logits_loss(call, target, self.temperature, exclusive)
        if self.hidden_weight:
            loss = loss + self.hidden_weight * hidden_loss(call, target)
        return loss

    def _find(self, pl_module: pl.LightningModule) -> tuple[str, PreTrainedModel]:
        """Return the path and the object of the outermost transformers model that contains the encoder."""
        try:
            encoder = find_encoder(pl_module, self.encoder)
        except ValueError as error:
            raise MisconfigurationException(
                f"Distillation: {error} The module must build its model in __init__, so that it can be copied."
            ) from error
        for name, module in pl_module.named_modules():
            if isinstance(module, PreTrainedModel) and any(child is encoder.model for child in module.modules()):
                return name, module
        raise AssertionError("an encoder is itself a transformers model")

    def _path_inside(self, name: str) -> str | None:
        """Return the encoder's path within the transformers model, or ``None`` if no path was given."""
        return None if self.encoder is None else self.encoder.removeprefix(name).removeprefix(".") or None

    def _make_teacher(self, name: str, model: PreTrainedModel) -> Teacher:
        """Return a copy of a model, with the weights of the teacher's checkpoint if there is one."""
        if self.teacher_path is None:
            return Teacher(copy.deepcopy(model), self._path_inside(name))
        dense = dense_twin(model)
        prefix = join_path(name, "x")[:-1]
        try:
            weights = load_checkpoint(self.teacher_path)["state_dict"]
            own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            dense.load_state_dict(own)
        except (RuntimeError, ValueError) as error:
            raise MisconfigurationException(
                f"Distillation: teacher={str(self.teacher_path)!r} is not a dense checkpoint of this module: {error}"
            ) from error
        return Teacher(dense, self._path_inside(name))

    def _check_layers(self, model: PreTrainedModel) -> None:
        assert self.teacher is not None
        counts = [len(find_encoder(found, self.teacher.encoder).layers) for found in (model, self.teacher.model)]
        if self.hidden_weight and counts[0] != counts[1]:
            raise MisconfigurationException(
                f"Distillation: the model has {counts[0]} layers and the teacher {counts[1]}, so their hidden states "
                "cannot be compared. Set hidden_weight=0."
            )

    def _wrap(self, pl_module: pl.LightningModule, model: PreTrainedModel) -> None:
        """Replace ``training_step`` of the module by a function that adds the distillation loss."""
        assert self.teacher is not None
        step, own = pl_module.training_step, vars(pl_module).get("training_step")
        encoder_path = self.teacher.encoder

        @wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            with record_calls(model, encoder_path) as calls:
                output = step(*args, **kwargs)
            if output is None:  # Lightning skips the batch.
                return None
            trained = [call for call in calls if call.hidden and call.hidden[-1].requires_grad]
            if not trained:
                raise MisconfigurationException(
                    f"Distillation: {type(pl_module).__name__}.training_step did not call {type(model).__name__} with "
                    "gradients enabled, so there is nothing to compare with the teacher. Call the whole model, not its "
                    "submodules."
                )
            loss = sum((self.loss(call) for call in trained), start=0.0) / len(trained)
            pl_module.log("train_distillation", loss, batch_size=len(trained[0].hidden[-1]))
            if isinstance(output, Mapping):
                return {**output, "loss": output["loss"] + loss}
            return output + loss

        self._unwrap()
        pl_module.training_step = training_step  # type: ignore[method-assign]

        def undo() -> None:
            vars(pl_module).pop("training_step", None)
            if own is not None:
                pl_module.training_step = own  # type: ignore[method-assign]

        self._undo = undo

    def _unwrap(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None


def _has_no_head(model: PreTrainedModel) -> bool:
    """Return whether a model is a class of transformers without a head. Users' own classes are checked when called."""
    return model.base_model is model and type(model).__module__.startswith("transformers.")
