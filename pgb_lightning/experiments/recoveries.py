"""Ways to re-finetune a pruned model, by name: the paper's, the recipe, and the recipe with one part changed."""

from __future__ import annotations

import copy
import gc
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
from transformers import PreTrainedModel

from pgb_lightning.callbacks import Distillation
from pgb_lightning.datamodules import GLUEDataModule, SQuADDataModule
from pgb_lightning.distillation import Teacher
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines import make_permanent
from pgb_lightning.experiments.training import make_trainer, save_weights
from pgb_lightning.modules import QuestionAnswering, TextClassification
from pgb_lightning.modules.optimizer import find_embeddings


@dataclass(frozen=True)
class Recovery:
    """A way to re-finetune a pruned model.

    Args:
        learning_rate: Peak learning rate.
        epochs: Number of epochs; that of the command if ``None``.
        task_weight: Weight of the task's own loss.
        logits_weight: Weight of the divergence from the dense model's outputs.
        hidden_weight: Weight of the distance from the dense model's hidden states. Models whose hidden states have
            another width, or that have fewer layers, are trained without it.
        layers: The layers whose hidden states are compared.
        embedding_learning_rate: Peak learning rate of the embeddings, if it differs; 0 freezes them.
    """

    learning_rate: float = 3e-5
    epochs: float | None = None
    task_weight: float = 1.0
    logits_weight: float = 0.0
    hidden_weight: float = 0.0
    layers: str = "all"
    embedding_learning_rate: float | None = None

    def settings(self, epochs: float, learning_rate: float | None = None) -> dict[str, Any]:
        """Return all settings, with the command's where this recovery has none or the command overrides them."""
        chosen = {"learning_rate": learning_rate or self.learning_rate, "epochs": self.epochs or epochs}
        return {**asdict(self), **chosen}


#: The dense model as the only teacher.
RECIPE = Recovery(learning_rate=1e-4, task_weight=0.0, logits_weight=1.0, hidden_weight=1.0)

RECOVERIES: dict[str, Recovery] = {
    "finetune": Recovery(),
    "distill": RECIPE,
    "finetune at 1e-4": Recovery(learning_rate=1e-4),
    "labels too": replace(RECIPE, task_weight=1.0),
    "logits only": replace(RECIPE, hidden_weight=0.0),
    "hidden states only": replace(RECIPE, logits_weight=0.0),
    "last hidden states": replace(RECIPE, layers="last"),
    "distill at 3e-5": replace(RECIPE, learning_rate=3e-5),
    "distill at 3e-4": replace(RECIPE, learning_rate=3e-4),
    "one epoch": replace(RECIPE, epochs=1),
    "ten epochs": replace(RECIPE, epochs=10),
    "frozen embeddings": replace(RECIPE, embedding_learning_rate=0.0),
}
"""``finetune`` is the paper's: the loss of the task, at 3e-5. ``distill`` is the recipe; the others change one part."""


class TaughtBy(Distillation):
    """Distillation from a given model into students of any width and depth, such as those of the baselines.

    Args:
        teacher: The dense model.
        settings: Settings of :class:`~pgb_lightning.callbacks.Distillation`.
    """

    def __init__(self, teacher: PreTrainedModel, **settings: Any) -> None:
        super().__init__(**settings)
        self._given = self.teacher = Teacher(copy.deepcopy(teacher))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Use the given teacher; otherwise, a student that does not look pruned would become its own teacher."""
        super().setup(trainer, pl_module, stage)
        self.teacher = self._given


def have_same_hidden_states(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    """Return whether two models have the same number of layers, and hidden states of the same width."""
    depths = [find_encoder(model).num_layers for model in (first, second)]
    widths = [next(find_embeddings(model).parameters()).shape[-1] for model in (first, second)]
    return depths[0] == depths[1] and widths[0] == widths[1]


def recover(
    module: TextClassification | QuestionAnswering,
    dense: PreTrainedModel,
    data: GLUEDataModule | SQuADDataModule,
    settings: dict[str, Any],
    precision: Any,
    seed: int,
    checkpoint: Path | None = None,
    cache: str | None = None,
) -> dict[str, Any]:
    """Re-finetune a pruned module in place. Masks are applied during training and become zeros in the weights.

    Args:
        module: The pruned module.
        dense: The dense model, the teacher of the recoveries that have one.
        data: The data module.
        settings: The settings of a recovery.
        precision: The Trainer's precision.
        seed: Seed of dropout and of the order of the rows.
        checkpoint: File for the result, if it is to be kept.
        cache: Folder for the teacher's answers, if they are to be kept.

    Returns:
        The weights of the losses that were used.

    Raises:
        ValueError: If hidden states alone are to be compared, and those of the two models cannot be.
    """
    gc.collect()  # a Trainer and its module refer to each other: free the previous model before this one is trained
    L.seed_everything(seed)
    module.learning_rate = settings["learning_rate"]
    module.embedding_learning_rate = settings["embedding_learning_rate"]
    if module.embedding_learning_rate == 0:
        find_embeddings(module.model).requires_grad_(False)
    module.train()
    losses = {name: settings[name] for name in ("task_weight", "logits_weight", "hidden_weight")}
    if losses["hidden_weight"] and not have_same_hidden_states(module.model, dense):
        losses["hidden_weight"] = 0.0
        if not losses["logits_weight"] and not losses["task_weight"]:
            raise ValueError(
                "hidden_weight is the only weight above 0, but the pruned model has other hidden states than the dense "
                "one. Use a recovery with logits_weight above 0."
            )
    is_taught = bool(losses["logits_weight"] or losses["hidden_weight"])
    callbacks = [TaughtBy(dense, layers=settings["layers"], cache=cache, **losses)] if is_taught else []
    trainer = make_trainer(
        settings["epochs"], precision=precision, callbacks=callbacks, enable_progress_bar=False, limit_val_batches=0
    )
    trainer.fit(module, datamodule=data)
    make_permanent(module.eval())
    if checkpoint is not None:
        save_weights(trainer, checkpoint)
    return losses
