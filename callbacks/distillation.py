"""Let the dense model teach the pruned one while it is re-finetuned."""

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

from pgb_lightning.callbacks.trainer_queries import shards_first
from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.distillation import Call, Teacher, hidden_loss, logits_loss, record_calls
from pgb_lightning.encoders.base import join_path
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.dense_twin import make_dense_model


class Distillation(pl.Callback):
    """Add to the training loss how far the model is from the dense one, on the same inputs.

    The teacher is a frozen copy of the transformers model, made as the fit starts and before ``PGBCallback`` prunes;
    the module's own ``training_step`` stays as it is. Whatever it returns as the loss gets two terms: the divergence of
    the model's scores (classes, numbers, or starts and ends of answers) from the teacher's, and the distance of every
    layer's hidden states. Logs their weighted sum as ``train_distillation``.

    The teacher is no part of the module or of its checkpoints. A resumed fit needs the same one: start it with a module
    that has the dense weights (``fine_tuned_ckpt``), as the first fit was, or name their checkpoint as ``teacher``.

    Args:
        temperature: Softens the scores of both.
        logits_weight: Weight of the divergence of the scores; 0 leaves it out.
        hidden_weight: Weight of the distance of the hidden states; 0 leaves it out.
        teacher: Lightning checkpoint of the dense module; by default the module as it is when the fit starts.
        encoder: Attribute path of the encoder, such as ``"model.bert"``; needed where there are several.

    Raises:
        MisconfigurationException: A setting is out of range, or there is nothing to learn from; the message says what
            to do.

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
                raise MisconfigurationException(f"Distillation: {name}={value!r} must be 0 or more, such as 1.0.")
        if not logits_weight and not hidden_weight:
            raise MisconfigurationException(
                "Distillation: logits_weight=0 and hidden_weight=0 leave nothing to learn; set one of them, or leave "
                "the callback out."
            )
        if teacher is not None and not Path(teacher).is_file():
            raise MisconfigurationException(
                f"Distillation: teacher={str(teacher)!r} is not a file; give the checkpoint of the dense module, or "
                "leave it out to learn from the module as it is when the fit starts."
            )
        self.temperature = temperature
        self.logits_weight = logits_weight
        self.hidden_weight = hidden_weight
        self.teacher_path = teacher
        self.encoder = encoder
        self.teacher: Teacher | None = None
        self._taught_before: str | None = None
        self._undo: Callable[[], None] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep a dense copy, while the module is still dense."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"Distillation adds to the loss that {type(pl_module).__name__}.training_step returns, which means "
                "nothing with automatic_optimization=False; return the loss and let Lightning step the optimizer."
            )
        if shards_first(trainer):
            raise MisconfigurationException(
                f"Distillation: strategy={type(trainer.strategy).__name__} cuts the model up, so that it cannot be "
                "compared layer by layer; use one device or strategy='ddp'."
            )
        name, model = self._find(pl_module)
        if self.logits_weight and _is_bare(model):
            raise MisconfigurationException(
                f"Distillation: logits_weight={self.logits_weight} asks for scores, but {type(model).__name__} has "
                "none: the module's head is outside of the transformers model. Set logits_weight=0 to learn from "
                "hidden states alone, or hold a transformers model with a head."
            )
        if is_pruned(find_encoder(pl_module, self.encoder)) and self.teacher_path is None:
            if self.teacher is None:
                raise MisconfigurationException(
                    "Distillation: the module is pruned already, so there is no dense model to copy; name the "
                    "checkpoint of the dense module: Distillation(teacher='fine_tuned.ckpt')."
                )
            return  # the teacher of an earlier fit goes on
        with isolate_rng():
            self.teacher = self._make_teacher(name, model)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take note of the teacher of the fit that goes on."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.state.fn == TrainerFn.FITTING:
            self._taught_before = state["teacher"]

    def state_dict(self) -> dict[str, Any]:
        """Keep the teacher's fingerprint with the checkpoint, not the teacher."""
        return {"teacher": self.teacher.fingerprint if self.teacher else None}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make ``training_step`` return the sum of losses."""
        assert self.teacher is not None
        before, self._taught_before = self._taught_before, None
        if before is not None and before != self.teacher.fingerprint:
            raise MisconfigurationException(
                "Distillation: the fit that ckpt_path goes on with learned from another model than the one this module "
                "began as. Build the module from the dense checkpoint (fine_tuned_ckpt of TextClassification and "
                "QuestionAnswering), or name it: Distillation(teacher='fine_tuned.ckpt')."
            )
        _, model = self._find(pl_module)
        self._check_layers(model)
        self.teacher.model.to(device=pl_module.device, dtype=model.dtype)  # type: ignore[call-arg]
        self._wrap(pl_module, model)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the module its own ``training_step`` back."""
        self._unwrap()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the module its own ``training_step`` back."""
        self._unwrap()

    def loss(self, call: Call) -> Tensor:
        """Return the weighted sum of what one run of the model is off the teacher's.

        Raises:
            MisconfigurationException: The model has no scores, but they have a weight.
        """
        assert self.teacher is not None
        wanted = self.teacher.run(call)
        loss = call.hidden[-1].new_zeros(())
        if self.logits_weight:
            if not call.logits():
                raise MisconfigurationException(
                    f"Distillation: {type(self.teacher.model).__name__} returns no logits by name: it was told "
                    "return_dict=False, or is a class without any. Set logits_weight=0 to learn from hidden states "
                    "alone."
                )
            kind = getattr(self.teacher.model.config, "problem_type", None)
            exclusive = kind in (None, "single_label_classification")
            loss = loss + self.logits_weight * logits_loss(call, wanted, self.temperature, exclusive)
        if self.hidden_weight:
            loss = loss + self.hidden_weight * hidden_loss(call, wanted)
        return loss

    def _find(self, pl_module: pl.LightningModule) -> tuple[str, PreTrainedModel]:
        """Return the outermost transformers model around the encoder, which has the head if any has, and its path."""
        try:
            encoder = find_encoder(pl_module, self.encoder)
        except ValueError as error:
            raise MisconfigurationException(
                f"Distillation: {error} (A module must have built its model in __init__ to be copied.)"
            ) from error
        for name, module in pl_module.named_modules():
            if isinstance(module, PreTrainedModel) and any(child is encoder.model for child in module.modules()):
                return name, module
        raise AssertionError("an encoder is a transformers model itself")

    def _inside(self, name: str) -> str | None:
        """Return the encoder's path within the transformers model, if it was given."""
        return None if self.encoder is None else self.encoder.removeprefix(name).removeprefix(".") or None

    def _make_teacher(self, name: str, model: PreTrainedModel) -> Teacher:
        """Copy a model, with the weights of the teacher's checkpoint if there is one."""
        if self.teacher_path is None:
            return Teacher(copy.deepcopy(model), self._inside(name))
        dense = make_dense_model(model)
        prefix = join_path(name, "x")[:-1]
        try:
            weights = load_checkpoint(self.teacher_path)["state_dict"]
            own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            dense.load_state_dict(own)
        except (RuntimeError, ValueError) as error:
            raise MisconfigurationException(
                f"Distillation: teacher={str(self.teacher_path)!r} is no checkpoint of this module before pruning: "
                f"{error}"
            ) from error
        return Teacher(dense, self._inside(name))

    def _check_layers(self, model: PreTrainedModel) -> None:
        assert self.teacher is not None
        counts = [len(find_encoder(found, self.teacher.encoder).layers) for found in (model, self.teacher.model)]
        if self.hidden_weight and counts[0] != counts[1]:
            raise MisconfigurationException(
                f"Distillation: the model has {counts[0]} layers and its teacher {counts[1]}, so that hidden states "
                "cannot be compared layer by layer; set hidden_weight=0."
            )

    def _wrap(self, pl_module: pl.LightningModule, model: PreTrainedModel) -> None:
        """Let ``training_step`` of one module add the loss. An attribute of the module goes before its class's."""
        assert self.teacher is not None
        step, own = pl_module.training_step, vars(pl_module).get("training_step")
        inside = self.teacher.encoder

        @wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            with record_calls(model, inside) as calls:
                output = step(*args, **kwargs)
            if output is None:  # Lightning skips the batch
                return None
            learning = [call for call in calls if call.hidden and call.hidden[-1].requires_grad]
            if not learning:
                raise MisconfigurationException(
                    f"Distillation: {type(pl_module).__name__}.training_step did not run {type(model).__name__} with "
                    "gradients, so there is nothing to compare with the teacher; call the whole model, not its parts."
                )
            more = sum((self.loss(call) for call in learning), start=0.0) / len(learning)
            size = len(learning[0].hidden[-1])
            pl_module.log("train_distillation", more, batch_size=size)
            if isinstance(output, Mapping):
                return {**output, "loss": output["loss"] + more}
            return output + more

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


def _is_bare(model: PreTrainedModel) -> bool:
    """Tell a model of transformers itself that has no head. What a class of the user's returns, a run shows."""
    return model.base_model is model and type(model).__module__.startswith("transformers.")
