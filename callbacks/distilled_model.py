"""Find the transformers model to distill into, make its teacher, and choose the layers to compare."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from transformers import PreTrainedModel

from pgb_lightning._compat import requires_all_gradients
from pgb_lightning.callbacks.teacher_weights import select_weights
from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.distillation import Teacher
from pgb_lightning.encoders.find import find_encoder, find_encoders
from pgb_lightning.encoders.wrappers import join_path, names_of
from pgb_lightning.model_calls import outermost_models
from pgb_lightning.surgery.dense_twin import dense_twin

#: The layers whose hidden states are compared.
Layers = Literal["all", "last"] | list[int]


def find_distilled(pl_module: pl.LightningModule, encoder: str | None) -> tuple[PreTrainedModel, str]:
    """Return the outermost transformers model that holds an encoder, and the encoder's path in it.

    Args:
        pl_module: The module.
        encoder: The encoder's path in it; required if it has several.

    Raises:
        MisconfigurationException: If there is no such encoder, or several models with heads share it.
    """
    try:
        found = find_encoder(pl_module, encoder)
    except ValueError as error:
        has_encoders = bool(find_encoders(pl_module))
        raise MisconfigurationException(
            f"Distillation: {error}"
            + ("" if has_encoders else " The module must build its model in __init__, so that it can be copied.")
        ) from error
    paths = outermost_models(pl_module, found)
    outermost = list(paths)
    if len(outermost) > 1 and encoder is not None:
        parts = encoder.split(".")
        on_path = [pl_module.get_submodule(".".join(parts[:count])) for count in range(1, len(parts) + 1)]
        outermost = [model for model in outermost if any(model is each for each in on_path)] or outermost
    if len(outermost) > 1:
        names = ", ".join(repr(join_path(names_of(model, pl_module)[0], paths[model])) for model in outermost)
        raise MisconfigurationException(
            f"Distillation: encoder={encoder!r} is shared by {len(outermost)} transformers models, and the outputs of "
            f"one of them are compared. Set encoder to the path in that model: {names}."
        )
    return outermost[0], paths[outermost[0]]


def check_outputs(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    model: PreTrainedModel,
    encoder: str,
    logits_weight: float,
    task_weight: float,
) -> None:
    """Check that the model has the outputs to compare, and that the strategy gets all gradients that it requires.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        model: The model.
        encoder: The encoder's path in it.
        logits_weight: The setting of :class:`~pgb_lightning.callbacks.Distillation`.
        task_weight: The same.

    Raises:
        MisconfigurationException: If the logits are compared and the model has no head, or if ``task_weight`` is 0 and
            the module has trainable parameters that do not affect what is compared.
    """
    if logits_weight and model.base_model is model and type(model).__module__.startswith("transformers."):
        # Other classes may return logits, which is known when they are called.
        raise MisconfigurationException(
            f"Distillation: logits_weight={logits_weight} needs logits, but {type(model).__name__} has no "
            "head; the module's head is outside the transformers model. Set logits_weight=0 to learn from hidden "
            "states only, or use a transformers model with a head."
        )
    if task_weight or not requires_all_gradients(trainer):
        return
    compared = model if logits_weight else find_encoder(model, encoder).model
    reached = set(compared.parameters())
    if not logits_weight and isinstance(pooler := getattr(compared, "pooler", None), nn.Module):
        reached -= set(pooler.parameters())  # Hidden states do not depend on it.
    names = [name for name, value in pl_module.named_parameters() if value.requires_grad and value not in reached]
    if names:
        raise MisconfigurationException(
            f"Distillation: task_weight=0 gives no gradient to {len(names)} trainable parameters, such as "
            f"{names[0]!r}, because the outputs that are compared with the teacher's do not depend on them, and "
            f"strategy={type(trainer.strategy).__name__} requires a gradient of every parameter. Use "
            "strategy='ddp_find_unused_parameters_true', set task_weight above 0, or freeze these parameters."
        )


def make_teacher(
    pl_module: pl.LightningModule, model: PreTrainedModel, encoder: str, path: str | Path | None
) -> Teacher:
    """Return a copy of a model, with the weights of a checkpoint if there is one.

    Args:
        pl_module: The module that holds the model.
        model: The model.
        encoder: The encoder's path in it.
        path: Lightning checkpoint of the dense module.

    Raises:
        MisconfigurationException: If the checkpoint is of another module, or weights are NaN or infinite.
    """
    if path is None:
        dense = copy.deepcopy(model)
    else:
        dense = dense_twin(model)
        try:
            saved = load_checkpoint(path)["state_dict"]
            dense.load_state_dict(select_weights(saved, pl_module, model, dense))
        except (RuntimeError, ValueError) as error:
            raise MisconfigurationException(
                f"Distillation: teacher={str(path)!r} is not a dense checkpoint of this module: {error}"
            ) from error
    broken = [name for name, value in dense.named_parameters() if not value.isfinite().all()]
    if broken:
        raise MisconfigurationException(
            f"Distillation: teacher={path and str(path)!r} has NaN or infinite weights, such as {broken[0]!r}, so "
            "there is nothing to learn from it. Use a checkpoint from before the training diverged."
        )
    return Teacher(dense, encoder)


def are_indices(layers: Any) -> bool:
    """Return whether a setting is a list of different indices."""
    is_list = isinstance(layers, (list, tuple)) and len(layers) > 0
    return is_list and all(type(each) is int and each >= 0 for each in layers) and len(set(layers)) == len(layers)


def compared_layers(
    model: PreTrainedModel, encoder: str, teacher: Teacher, layers: Layers | Sequence[int]
) -> tuple[list[int], int]:
    """Return the indices of the runs of layers whose hidden states are compared, and the number of all runs.

    Args:
        model: The model.
        encoder: The encoder's path in it.
        teacher: Its teacher.
        layers: The setting; an empty list if no hidden states are compared.

    Raises:
        MisconfigurationException: If an index is out of range, or the teacher has another number of layers.
    """
    student, dense = (len(find_encoder(each, encoder).order) for each in (model, teacher.model))
    if layers and student != dense:
        raise MisconfigurationException(
            f"Distillation: the model has {student} layers and the teacher {dense}, so their hidden states cannot be "
            "compared. Set hidden_weight=0."
        )
    chosen = {"all": list(range(dense)), "last": [dense - 1]}[layers] if isinstance(layers, str) else list(layers)
    if chosen and max(chosen) >= dense:
        raise MisconfigurationException(
            f"Distillation: layers={layers} is out of range: {type(model).__name__} runs {dense} layers. Use indices "
            f"from 0 to {dense - 1}."
        )
    return chosen, dense
