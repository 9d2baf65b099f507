"""``save_pretrained`` of a model that was pruned in place: it writes a folder that ``from_pretrained`` loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.encoders.pruned_config import PrunedConfig, pruned_config
from pgb_lightning.encoders.wrappers import join_path
from pgb_lightning.surgery.record import make_record
from pgb_lightning.surgery.structure import Structure

#: For each model class the class of its pruned models, which ``from_pretrained`` of the Auto classes creates;
#: filled by :mod:`pgb_lightning.export.registered_models` when the class of a pruned configuration is used.
PRUNED_CLASSES: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}

METHOD = "save_pretrained"

#: The parameters of the method after the folder, which may be positional.
PARAMETERS = tuple(signature(PreTrainedModel.save_pretrained).parameters)[2:]


class PrunedSave:
    """``save_pretrained`` of a model with pruned encoders.

    It replaces the method on the model instance. While it runs, the configuration of each pruned encoder is that of a
    pruned model, with a record of the encoder's current structure; at all other times, it is that of the dense model.
    ``push_to_hub``, the ``Trainer`` of transformers and sentence-transformers call this method.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.inner = vars(model).get(METHOD)  # a replacement by another library

    def __call__(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save the model as transformers does, with its structure in the configuration.

        Raises:
            ValueError: If the model's class could not load the folder. Nothing is written then.
        """
        kwargs |= dict(zip(PARAMETERS, args, strict=False))
        structures = _structures(self.model, kwargs.get("state_dict"))
        with _recorded(self.model, structures) as is_pruned:
            if is_pruned:
                _check_loads(self.model, structures)
                if _has_wrappers(self.model):
                    kwargs["state_dict"] = _plain_state_dict(self.model, kwargs.get("state_dict"))
            if self.inner is not None:
                return self.inner(save_directory, **kwargs)
            return type(self.model).save_pretrained(self.model, save_directory, **kwargs)


def record_when_saved(encoder: Encoder) -> None:
    """Make the models that hold an encoder save its structure in their folders. Calling it again has no effect."""
    for model in models_around(encoder):
        if not isinstance(vars(model).get(METHOD), PrunedSave):
            vars(model)[METHOD] = PrunedSave(model)


def save_as_usual(encoder: Encoder) -> None:
    """Undo :func:`record_when_saved`."""
    for model in models_around(encoder):
        saver = vars(model).get(METHOD)
        if isinstance(saver, PrunedSave):
            del vars(model)[METHOD]
            if saver.inner is not None:
                vars(model)[METHOD] = saver.inner


def models_around(encoder: Encoder) -> list[PreTrainedModel]:
    """Return the encoder's model and the transformers models that hold it, as far as they are known."""
    owners = encoder.owners
    around = [
        module
        for root in encoder.roots
        for module in root.modules()
        if isinstance(module, PreTrainedModel) and any(child is owner for child in module.modules() for owner in owners)
    ]
    return list(dict.fromkeys(around))


def _structures(model: PreTrainedModel, state_dict: Mapping[str, Any] | None) -> dict[str, Structure]:
    """Return the structure of each encoder by its path, from the state dict to be saved if one is given."""
    return {
        encoder.name: Structure.of(encoder) if state_dict is None else Structure.from_state_dict(encoder, state_dict)
        for encoder in find_encoders(model)
    }


def _has_wrappers(model: PreTrainedModel) -> bool:
    """Return whether the layers of an encoder are wrapped, as by ``torch.compile``."""
    return any(list(encoder.stack) != encoder.layers for encoder in find_encoders(model))


def _plain_state_dict(model: PreTrainedModel, given: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the given state dict, or that of the model, without the names of wrappers."""
    state: dict[str, Tensor] = model.state_dict() if given is None else given
    for encoder in find_encoders(model):
        encoder.check_wrappers()
        state = encoder.plain_names(state)
    return state


@contextmanager
def _recorded(model: PreTrainedModel, structures: Mapping[str, Structure]) -> Iterator[bool]:
    """Turn the configurations of pruned encoders, and of models that hold one, into those of pruned models.

    Yields:
        Whether any encoder is pruned.
    """
    changed: list[tuple[PretrainedConfig, type[PretrainedConfig], dict[str, Any]]] = []
    try:
        pruned_encoders = [e for e in find_encoders(model) if not structures[e.name].is_dense(e)]
        for encoder in pruned_encoders:
            record = make_record(encoder, structures[encoder.name])
            for config in (owner.config for owner in models_around(encoder)):
                if isinstance(config, PrunedConfig):
                    config.pgb = record  # not undone: this is the configuration of a pruned model
                elif getattr(config, "model_type", None) == encoder.model_type:
                    pruned = pruned_config(encoder.model_type)
                    own: dict[str, Any] = {}
                    for name in {"pgb", "model_type"} & vars(config).keys():
                        own[name] = vars(config).pop(name)
                    changed.append((config, type(config), own))
                    config.__class__ = pruned
                    config.pgb = record
        yield bool(pruned_encoders)
    finally:
        for config, own_class, own in reversed(changed):
            config.__class__ = own_class
            vars(config).pop("pgb", None)
            vars(config).update(own)


def _check_loads(model: PreTrainedModel, structures: Mapping[str, Structure]) -> None:
    """Check that the class that loads the folder builds the structure from the configuration."""
    name = type(model).__name__
    loading = next((cls for cls in type(model).__mro__ if not cls.__name__.startswith("FSDP")), type(model))
    loading = PRUNED_CLASSES.get(loading, loading)
    reason = f"{loading.__name__}.from_pretrained would build dense layers"
    try:
        settings = model.config.to_dict()
        with torch.device("meta"):
            built = loading(loading.config_class.from_dict(settings))  # type: ignore[union-attr]
        if {e.name: Structure.of(e) for e in find_encoders(built)} == structures:
            return
    except Exception as error:
        reason = f"{loading.__name__} cannot be built from its configuration alone ({type(error).__name__}: {error})"
    inner = next(iter(structures))  # the path of an encoder
    own = f"export_huggingface({join_path('model', inner)}, folder)"
    raise ValueError(
        f"save_pretrained of {name} would write a folder that does not load: its encoder is pruned, and {reason}. Use "
        f"dense_twin(model).save_pretrained(folder) for a dense folder, {own} for the encoder alone, or torch.save of "
        "the state dict, which loads into a new model after follow_state_dict(model)."
    )
