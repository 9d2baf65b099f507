"""Model types of our own, which transformers' ``Auto`` classes load once this module is imported.

For every encoder with a map there is a type such as ``pgb-lightning-bert``: the transformers model, built with the
structure that its configuration records. The name is what transformers reports where this package is missing.
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
from pgb_lightning.surgery.structure import apply_structure, structure_of

#: What is registered of each type: transformers' ``Auto`` class, and the end of the model class's name.
HEADS = {
    "AutoModel": "Model",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForMaskedLM": "ForMaskedLM",
}


class ExportedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What an exported model adds to its transformers class: the recorded structure, and a check of the weights."""

    dense_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        apply_structure(find_encoder(self), config.pgb)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load as transformers does, but refuse weights that are not those of the recorded structure.

        Raises:
            StructureError: The configuration and the weights disagree, or weights of the encoder are missing.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        lenient = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(name, *args, **kwargs)
        model, info = loaded
        _check_loaded(model, info, name, lenient)
        return (model, info) if wants_info else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, with the structure as it is now."""
        self.config.pgb = structure_of(find_encoder(self))
        super().save_pretrained(*args, **kwargs)

    def make_dense_model(self) -> PreTrainedModel:
        """Make a dense model of the transformers class, with random weights."""
        return self.dense_class(recast(self.config, self.dense_class.config_class))


def exported_class(dense_class: type[PreTrainedModel]) -> type[ExportedModel]:
    """Return the registered class that loads what ``dense_class`` becomes when it is pruned.

    Raises:
        ValueError: There is none; the message lists those that have one.

    Example:
        >>> exported_class(transformers.BertForSequenceClassification).__name__
        'PGBBertForSequenceClassification'
    """
    if dense_class not in _EXPORTED:
        known = ", ".join(sorted(known.__name__ for known in _EXPORTED))
        raise ValueError(
            f"{dense_class.__name__} has no counterpart that transformers could load; these have: {known}."
        )
    return _EXPORTED[dense_class]


def auto_class(model: PreTrainedModel) -> Any:
    """Return transformers' ``Auto`` class that loads models with a model's head.

    Example:
        >>> tiny = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> auto_class(transformers.BertForSequenceClassification(tiny)).__name__
        'AutoModelForSequenceClassification'
    """
    name = next((auto for auto, head in HEADS.items() if type(model).__name__.endswith(head)), "AutoModel")
    return getattr(transformers, name)


def recast(config: PretrainedConfig, config_class: type[PretrainedConfig] | None, pgb: Any = None) -> PretrainedConfig:
    """Turn a configuration into one of another class with the same settings.

    Args:
        config: A configuration; it does not change.
        config_class: The class it is to have, of the same family.
        pgb: The structure's record; ``None`` leaves it out.
    """
    assert config_class is not None  # a class of transformers has one
    other = config_class()
    other.__dict__.update(copy.deepcopy(config.__dict__))
    for name in ("pgb", "model_type"):  # a class attribute; a configuration read from a file has it as its own, too
        other.__dict__.pop(name, None)
    if pgb is not None:
        other.pgb = pgb
    return other


def _check_loaded(model: PreTrainedModel, info: dict[str, Any], name: Any, lenient: bool) -> None:
    """Require that the embeddings and layers were loaded whole, and nothing of them was left over."""
    encoder = find_encoder(model)
    parts = ("embeddings.", f"{encoder.family.layers}.")

    def of_encoder(key: str) -> bool:
        return key.removeprefix(f"{model.base_model_prefix}.").startswith(parts)

    where = f"{str(name)!r}: config.json and the weights disagree"
    remedy = "Export the model again, or undo what was edited."
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        if of_encoder(key):
            raise StructureError(f"{where}: {key} is {tuple(stored)}, not {tuple(wanted)} as recorded. {remedy}")
        if not lenient:
            raise RuntimeError(
                f"{str(name)!r}: {key} is {tuple(stored)}, the model's {tuple(wanted)}; pass "
                "ignore_mismatched_sizes=True to start this part anew."
            )
    for keys, what in ((info["missing_keys"], "is missing"), (info["unexpected_keys"], "is there, but not recorded")):
        found = sorted(filter(of_encoder, keys))
        if found:
            raise StructureError(f"{where}: {found[0]} {what} ({len(found)} such tensors). {remedy}")
    for key, module in model.named_modules():
        if isinstance(module, GroupedLinear):
            sizes = ((module.input_index, module.in_features), (module.output_index, module.out_features))
            for index, size in sizes:
                places = index.flatten().to("cpu", torch.long)
                if not index.is_meta and not (0 <= int(places.min()) <= int(places.max()) < size):
                    raise StructureError(f"{where}: {key} places a block outside its matrix. {remedy}")


def _register() -> dict[type[PreTrainedModel], type[ExportedModel]]:
    """Make and register the classes of every type; they become attributes of this module, so that they pickle."""
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
