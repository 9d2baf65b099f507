"""Custom model types that the transformers ``Auto`` classes can load once this module is imported.

Every supported encoder family gets a type such as ``pgb-lightning-bert``: the transformers model, built with the
structure recorded in its configuration. Without this package, transformers reports that name as an unknown model type.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, cast

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pgb_lightning.encoders.base import EXPORTED
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.surgery.from_state_dict import StructureError
from pgb_lightning.surgery.structure import Structure

#: The model classes registered for each type: the transformers ``Auto`` class and the suffix of the class name.
HEADS = {
    "AutoModel": "Model",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForMaskedLM": "ForMaskedLM",
}


class ExportedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixin that builds a transformers model with its recorded structure and checks the loaded weights."""

    dense_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.pgb is not None:
            encoder = find_encoder(self)
            Structure.from_record(encoder, config.pgb).build(encoder)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load the model as transformers does, and check that the weights match the recorded structure.

        Raises:
            StructureError: If the configuration and the weights disagree, or encoder weights are missing.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        lenient = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(name, *args, **kwargs)
        model, info = loaded
        _check_loaded(model, info, name, lenient)
        return (model, info) if wants_info else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the model as transformers does, with its current structure in the configuration."""
        encoder = find_encoder(self)
        self.config.pgb = Structure.of(encoder).to_record(encoder)
        super().save_pretrained(*args, **kwargs)

    def make_dense_model(self) -> PreTrainedModel:
        """Return a dense model of the original transformers class, with random weights."""
        return self.dense_class(convert_config(self.config, self.dense_class.config_class))


def exported_class(dense_class: type[PreTrainedModel]) -> type[ExportedModel]:
    """Return the registered class for pruned models of ``dense_class``.

    Raises:
        ValueError: If there is none. The message lists the supported classes.

    Example:
        >>> exported_class(transformers.BertForSequenceClassification).__name__
        'PGBBertForSequenceClassification'
    """
    if dense_class not in _EXPORTED:
        known = ", ".join(sorted(known.__name__ for known in _EXPORTED))
        raise ValueError(
            f"{dense_class.__name__} cannot be exported: no model type is registered for it. Choose one of: {known}."
        )
    return _EXPORTED[dense_class]


def auto_class(model: PreTrainedModel) -> Any:
    """Return the transformers ``Auto`` class that loads models with this model's head.

    Example:
        >>> tiny = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> auto_class(transformers.BertForSequenceClassification(tiny)).__name__
        'AutoModelForSequenceClassification'
    """
    name = next((auto for auto, head in HEADS.items() if type(model).__name__.endswith(head)), "AutoModel")
    return getattr(transformers, name)


def convert_config(
    config: PretrainedConfig, config_class: type[PretrainedConfig] | None, pgb: Any = None
) -> PretrainedConfig:
    """Convert a configuration to another class of the same family, with the same settings.

    Args:
        config: The configuration. It is not modified.
        config_class: The class to convert to.
        pgb: The record of the structure, or ``None`` for a dense model.
    """
    assert config_class is not None  # every transformers model class has one
    other = config_class()
    other.__dict__.update(copy.deepcopy(config.__dict__))
    # Class attributes, which a configuration read from a file also holds as instance attributes.
    for name in ("pgb", "model_type"):
        other.__dict__.pop(name, None)
    if pgb is not None:
        other.pgb = pgb
    return other


def _check_loaded(model: PreTrainedModel, info: dict[str, Any], name: Any, lenient: bool) -> None:
    """Raise if any tensor of the embeddings or layers is missing, unexpected or of the wrong shape."""
    encoder = find_encoder(model)
    parts = ("embeddings.", f"{encoder.family.layers}.")

    def of_encoder(key: str) -> bool:
        return key.removeprefix(f"{model.base_model_prefix}.").startswith(parts)

    where = f"{str(name)!r}: config.json and the weights disagree"
    remedy = "Export the model again, or undo the edits to this folder."
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        if of_encoder(key):
            raise StructureError(
                f"{where}: {key} has shape {tuple(stored)}, but config.json records {tuple(wanted)}. {remedy}"
            )
        if not lenient:
            raise RuntimeError(
                f"{str(name)!r}: {key} has shape {tuple(stored)}, but the model expects {tuple(wanted)}. Pass "
                "ignore_mismatched_sizes=True to initialize it randomly."
            )
    for keys, problem in ((info["missing_keys"], "is missing"), (info["unexpected_keys"], "is not in config.json")):
        found = sorted(filter(of_encoder, keys))
        if found:
            count = f"{len(found)} such tensor{'s' if len(found) > 1 else ''}"
            raise StructureError(f"{where}: {found[0]} {problem} ({count}). {remedy}")
    for key, module in model.named_modules():
        if isinstance(module, GroupedLinear):
            sizes = ((module.input_index, module.in_features), (module.output_index, module.out_features))
            for index, size in sizes:
                positions = index.flatten().to("cpu", torch.long)
                if index.is_meta:
                    continue
                if not 0 <= int(positions.min()) <= int(positions.max()) < size:
                    raise StructureError(f"{where}: an index of {key} is out of range. {remedy}")
                if int(positions.bincount().max()) > 1:
                    raise StructureError(f"{where}: an index of {key} has a position twice. {remedy}")


def _register() -> dict[type[PreTrainedModel], type[ExportedModel]]:
    """Create and register the classes of every type, as attributes of this module so that they can be pickled."""
    made: dict[type[PreTrainedModel], type[ExportedModel]] = {}
    for model_type in FAMILIES:
        dense_config = CONFIG_MAPPING[model_type]
        family = dense_config.__name__.removesuffix("Config")
        names: dict[str, Any] = {"__module__": __name__, "__doc__": f"Configuration of a pruned {family} model."}
        config = type(f"PGB{family}Config", (dense_config,), names | {"model_type": EXPORTED + model_type, "pgb": None})
        AutoConfig.register(EXPORTED + model_type, config)
        globals()[config.__name__] = config
        for auto, head in HEADS.items():
            dense = getattr(transformers, f"{family}{head}")
            names = {"__module__": __name__, "__doc__": f"A pruned {dense.__name__}."}
            names |= {"config_class": config, "dense_class": dense}
            model = type(f"PGB{dense.__name__}", (ExportedModel, dense), names)
            getattr(transformers, auto).register(config, model)
            globals()[model.__name__] = model
            made[dense] = cast(type[ExportedModel], model)
    return made


_EXPORTED = _register()
