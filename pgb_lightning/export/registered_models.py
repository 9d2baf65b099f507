"""Custom model types that the transformers ``Auto`` classes can load once this module is imported.

Every supported encoder family gets a type such as ``pgb-lightning-bert``: the transformers model, built with the
structure recorded in its configuration. Without this package, transformers reports it as an unknown model type.
"""

from __future__ import annotations

import re
from inspect import signature
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pgb_lightning._compat import leave_uninitialized
from pgb_lightning._compat import registered_models as known_models
from pgb_lightning.encoders.base import EXPORTED
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.pruned_config import ON_USE, PREFIX, known_types, pruned_config, pruned_name
from pgb_lightning.export.loaded import check_loaded
from pgb_lightning.layers.linear import ConstantLinear
from pgb_lightning.surgery.finish import finish
from pgb_lightning.surgery.record import absent_modules, build_record, dense_config, remove_modules, transformers_class
from pgb_lightning.surgery.saving import PRUNED_CLASSES
from pgb_lightning.surgery.structure import Structure

#: The ``Auto`` classes of transformers for models, by the part of their names after ``AutoModel``, the head.
AUTO_CLASSES: dict[str, Any] = {
    name.removeprefix("AutoModel"): getattr(modeling_auto, name)
    for name in modeling_auto.__all__
    if name.startswith("AutoModel") and hasattr(transformers, name)
}


class ExportedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixin that builds a transformers model with its recorded structure and checks the loaded weights."""

    dense_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.pgb is not None:
            encoder = find_encoder(self)
            # A model with a head decides itself whether its encoder has a pooler, and so does an explicit argument.
            is_given = encoder.model is not self or bool(args or kwargs)
            build_record(encoder, config.pgb, remove_absent=not is_given)
            finish(encoder)
            leave_uninitialized(encoder.stack)  # all of its weights are in the folder
            self._accept_folders_of_0_1_0()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load the model as transformers does, and check that the weights match the recorded structure.

        Raises:
            StructureError: If the configuration and the weights disagree, or encoder weights are missing.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        lenient = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        check_loaded(model, info, pretrained_model_name_or_path, lenient)
        return (model, info) if wants_info else model

    def _accept_folders_of_0_1_0(self) -> None:
        """Suppress warnings about the empty weights that folders of 0.1.0 lack, and the tables that only they have."""
        empty = {f"^{re.escape(name)}.weight$" for name, m in self.named_modules() if isinstance(m, ConstantLinear)}
        table = find_encoder(self).family.attention_table
        self._keys_to_ignore_on_load_missing = {*(self._keys_to_ignore_on_load_missing or ()), *empty}
        if table is not None:
            unread = {rf"{re.escape(table)}\.weight$"}
            self._keys_to_ignore_on_load_unexpected = {*(self._keys_to_ignore_on_load_unexpected or ()), *unread}

    def to_plain(self) -> PreTrainedModel:
        """Return a copy of the model as an instance of the transformers class, with the same layers."""
        return rebuild(self, self.dense_class, dense_config(self))


def rebuild(model: PreTrainedModel, cls: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Return a copy of a model as an instance of another class, with equal layers and weights.

    Args:
        model: The model.
        cls: The class, whose encoder is of the same family.
        config: Its configuration.

    Raises:
        ValueError: If the class has other weights than the model, or a wrapper may change what its layers compute.
    """
    find_encoder(model).check_wrappers()
    with torch.device(model.device):
        other: PreTrainedModel = cls(config, **_extra_modules(model, cls))
    new, own = find_encoder(other), find_encoder(model)
    remove_modules(new, absent_modules(own))
    structure = Structure.of(own)
    structure.build(new)
    if not structure.is_dense(new):
        finish(new)
    state = own.plain_names(model.state_dict())
    for name, tensor in (*other.named_parameters(), *other.named_buffers()):
        if name in state:  # a model may have several data types
            tensor.data = tensor.data.to(state[name])
    try:
        other.load_state_dict(state)
    except RuntimeError as error:
        problem = " ".join(str(error).split()).partition(": ")[2]
        raise ValueError(f"{_outside(type(model))} The weights are not those of its class: {problem}") from error
    different = [n for n, value in other.state_dict().items() if not value.is_meta and _differs(value, state[n])]
    if different:
        raise ValueError(
            f"{_outside(type(model))} Weights are tied in its class but differ in the model: {', '.join(different)}. "
            "Set model.config.tie_word_embeddings=False."
        )
    other.train(model.training)
    return other


def _extra_modules(model: PreTrainedModel, cls: type[PreTrainedModel]) -> dict[str, bool]:
    """Return constructor arguments for modules that an encoder only has because its head needs them."""
    parameter = signature(transformers_class(cls)).parameters.get("add_pooling_layer")
    is_asked_for = parameter is not None and parameter.default is False
    return {"add_pooling_layer": True} if is_asked_for and getattr(model, "pooler", None) is not None else {}


def _differs(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors of one shape differ; NaN equals NaN."""
    return bool(((left != right) & ~(left.isnan() & right.isnan())).any())


def _outside(cls: type[PreTrainedModel]) -> str:
    """Return the beginning of a message for a model that differs from its class, with the remedy."""
    return (
        f"{cls.__name__} cannot be exported. Use dense_twin(model).save_pretrained(folder) for a dense folder, or "
        "export the encoder alone."
    )


def exported_class(dense_class: type[PreTrainedModel]) -> type[ExportedModel]:
    """Return the registered class for pruned models of ``dense_class``.

    Raises:
        ValueError: If there is no such class. The message lists the supported classes.

    Example:
        >>> exported_class(transformers.BertForSequenceClassification).__name__
        'PGBBertForSequenceClassification'
    """
    config = dense_class.config_class
    if config is not None:
        pruned_config(str(config.model_type))
    if dense_class not in PRUNED_CLASSES:
        own = [each for each in PRUNED_CLASSES if each.config_class is config]
        related = [each for each in own if issubclass(dense_class, each)] or own
        known = ", ".join(sorted(each.__name__ for each in related)) or "the classes that transformers knows"
        raise ValueError(
            f"{dense_class.__name__} cannot be exported: it is not one of {known}. Use "
            "dense_twin(model).save_pretrained(folder) for a dense folder that its class loads, or export the "
            "transformers model that it holds, such as its encoder. The class of a type of your own must be registered "
            "with transformers: AutoModel.register, or that of another Auto class."
        )
    return cast(type[ExportedModel], PRUNED_CLASSES[dense_class])


def auto_class(model: PreTrainedModel) -> Any:
    """Return the transformers ``Auto`` class that loads models with this model's head.

    Example:
        >>> tiny = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> auto_class(transformers.BertForSequenceClassification(tiny)).__name__
        'AutoModelForSequenceClassification'
    """
    return getattr(transformers, f"AutoModel{head_of(type(model))}")


def head_of(cls: type[PreTrainedModel]) -> str:
    """Return the part after ``AutoModel`` in the name of the ``Auto`` class for a model class.

    If several ``Auto`` classes know the model class, the one whose head is in the model class's name is used.

    Example:
        >>> head_of(transformers.DistilBertForMaskedLM), head_of(transformers.BertLMHeadModel)
        ('ForMaskedLM', 'ForCausalLM')
    """
    known = [head for head, auto in AUTO_CLASSES.items() if cls in known_models(auto, cls.config_class)]
    named = [head for head in known or AUTO_CLASSES if head and cls.__name__.endswith(head)]
    return [*named, *known, ""][0]


def register_models(config: type[Any]) -> None:
    """Register the pruned model classes of all heads of a configuration, unless they are registered already.

    The classes are attributes of this module, so that they can be pickled.

    Args:
        config: The class of a pruned model's configuration.
    """
    for auto in AUTO_CLASSES.values():
        dense_classes = known_models(auto, config.dense_class)
        made = [_make_class(dense, config) for dense in dense_classes]
        if made and [*known_models(auto, config)] != made:
            auto.register(config, made[0] if len(made) == 1 else tuple(made), exist_ok=True)


def _make_class(dense: type[PreTrainedModel], config: type[Any]) -> type[PreTrainedModel]:
    """Return the class for pruned models of ``dense``. It is created on first use."""
    made = PRUNED_CLASSES.get(dense)
    if made is None or made.config_class is not config:
        name = pruned_name(dense, config.model_type.removeprefix(EXPORTED))
        names: dict[str, Any] = {"__module__": __name__, "__doc__": f"A pruned {dense.__name__}."}
        names |= {"config_class": config, "dense_class": dense}
        made = PRUNED_CLASSES[dense] = globals()[name] = type(name, (ExportedModel, dense), names)
    return made


def __getattr__(name: str) -> Any:
    """Return the class of a given name, for example for ``pickle``. It is created on first use."""
    types = known_types() if name.startswith(PREFIX) else []

    def is_other_family(model_type: str) -> bool:
        return not name.startswith(pruned_name(CONFIG_MAPPING[model_type], model_type).removesuffix("Config"))

    for model_type in sorted(types, key=is_other_family):  # first the types whose name it contains
        config = pruned_config(model_type)
        found = config if config.__name__ == name else globals().get(name)
        if found is not None:
            return found
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}. A model of your own type is known once the package that "
        "registers its family is imported."
    )


ON_USE.append(register_models)
