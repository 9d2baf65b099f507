"""Custom model types that the transformers ``Auto`` classes can load once this module is imported.

Every supported encoder family gets a type such as ``pgb-lightning-bert``: the transformers model, built with the
structure recorded in its configuration. Without this package, transformers reports that name as an unknown model type.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.pruned_config import PREFIX, PRUNED_CONFIGS
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.surgery.finish import finish
from pgb_lightning.surgery.from_state_dict import StructureError
from pgb_lightning.surgery.record import absent_modules, build_record, dense_config, remove_modules
from pgb_lightning.surgery.saving import PRUNED_CLASSES
from pgb_lightning.surgery.structure import Structure

#: The model classes registered for each type: the transformers ``Auto`` class and the suffix of the class name.
HEADS = {
    "AutoModel": "Model",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForMultipleChoice": "ForMultipleChoice",
    "AutoModelForNextSentencePrediction": "ForNextSentencePrediction",
    "AutoModelForPreTraining": "ForPreTraining",
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
        _check_loaded(model, info, pretrained_model_name_or_path, lenient)
        return (model, info) if wants_info else model

    def _accept_folders_of_0_1_0(self) -> None:
        """Make loading silent about the empty weights that 0.1.0 does not write, and the tables that it does."""
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
        other: PreTrainedModel = cls(config)
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


def _differs(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors of one shape differ; NaN equals NaN."""
    return bool(((left != right) & ~(left.isnan() & right.isnan())).any())


def _outside(cls: type[PreTrainedModel]) -> str:
    """Return the beginning of a message: the model is more than its class, and what can be done."""
    return (
        f"{cls.__name__} cannot be exported. Use dense_twin(model).save_pretrained(folder) for a dense folder, or "
        "export the encoder alone."
    )


def exported_class(dense_class: type[PreTrainedModel]) -> type[ExportedModel]:
    """Return the registered class for pruned models of ``dense_class``.

    Raises:
        ValueError: If there is none. The message lists the supported classes.

    Example:
        >>> exported_class(transformers.BertForSequenceClassification).__name__
        'PGBBertForSequenceClassification'
    """
    if dense_class not in _EXPORTED:
        related = {each for each in _EXPORTED if issubclass(dense_class, each.__mro__[1])} or _EXPORTED
        known = ", ".join(sorted(each.__name__ for each in related))
        raise ValueError(
            f"{dense_class.__name__} cannot be exported: it is not one of {known}. Use "
            "dense_twin(model).save_pretrained(folder) for a dense folder that its class loads, or export the "
            "transformers model that it holds, such as its encoder."
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
    for config in PRUNED_CONFIGS.values():
        family = config.__name__.removeprefix(PREFIX).removesuffix("Config")
        globals()[config.__name__] = config
        for auto, head in HEADS.items():
            dense = getattr(transformers, f"{family}{head}", None)
            if dense is None:  # not every family has every head
                continue
            names: dict[str, Any] = {"__module__": __name__, "__doc__": f"A pruned {dense.__name__}."}
            names |= {"config_class": config, "dense_class": dense}
            model = type(f"{PREFIX}{dense.__name__}", (ExportedModel, dense), names)
            getattr(transformers, auto).register(config, model)
            globals()[model.__name__] = model
            made[dense] = cast(type[ExportedModel], model)
    return made


_EXPORTED = _register()
PRUNED_CLASSES.update(_EXPORTED)
