"""The transformers configurations of pruned models, one class for each model type.

They have a record of the encoder's structure, and a model type such as ``pgb-lightning-bert``, under which
:mod:`pgb_lightning.export.registered_models` registers the models. Without this package, transformers reports an
unknown model type with this name.

Registering a family makes the type known to transformers. The class itself is created on first use, since the
configuration class that it is derived from may be registered later, and to keep the import of this package fast.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pgb_lightning.encoders.base import EXPORTED

#: Prefix of the names of pruned models' classes; the rest is the name of the transformers class.
PREFIX = "PGB"

#: Functions that are called with the class of a pruned model's configuration whenever it is used;
#: :mod:`pgb_lightning.export.registered_models` registers the model classes in one.
ON_USE: list[Callable[[type[PrunedConfig]], None]] = []

#: The types of dense models that were announced, each with the class for its pruned models once it is created.
_CLASSES: dict[str, type[PrunedConfig] | None] = {}


class PrunedConfig:
    """Mixin for the configuration of a pruned model.

    Attributes:
        pgb: The record of the structure (:func:`pgb_lightning.surgery.record.make_record`), or ``None``.
        dense_class: The class of the dense model's configuration.
    """

    pgb: Any = None
    dense_class: type[PretrainedConfig]

    def __new__(cls, *_: Any, **__: Any) -> PrunedConfig:
        """Register the model classes with transformers, which finds them by the class of a configuration."""
        for use in ON_USE:
            use(cls)
        return super().__new__(cls)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary, with the names of the registered classes as ``architectures``."""
        settings: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        names = settings.get("architectures") or []
        settings["architectures"] = [name if name.startswith(PREFIX) else f"{PREFIX}{name}" for name in names] or None
        return settings


class _OnFirstUse(type):
    """Metaclass of a placeholder that forwards calls and attributes to the class for which it stands.

    Attributes:
        dense_type: The ``model_type`` of the dense model.
    """

    dense_type: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return pruned_config(cls.dense_type)(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(pruned_config(cls.dense_type), name)


def announce(model_type: str) -> None:
    """Register the type of a family's pruned models with transformers, such as ``pgb-lightning-bert``.

    Args:
        model_type: The ``model_type`` of the dense models, which may be registered with transformers later.
    """
    if model_type in _CLASSES:
        return
    _CLASSES[model_type] = None
    placeholder = _OnFirstUse(f"{PREFIX}Config", (), {"dense_type": model_type, "__module__": __name__})
    AutoConfig.register(EXPORTED + model_type, placeholder)


def pruned_config(model_type: str) -> type[Any]:
    """Return the configuration class of a type's pruned models. It is created and registered on first use.

    Args:
        model_type: The ``model_type`` of the dense models.

    Raises:
        ValueError: If transformers does not know the type.

    Example:
        >>> pruned_config("bert").__name__, pruned_config("bert").model_type
        ('PGBBertConfig', 'pgb-lightning-bert')
    """
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"model_type={model_type!r} is unknown to transformers {transformers.__version__}, so its models cannot be "
            f"saved pruned, or loaded. Call AutoConfig.register({model_type!r}, ...) with its configuration class."
        )
    dense = CONFIG_MAPPING[model_type]
    made = _CLASSES.get(model_type)
    if made is None or made.dense_class is not dense:
        name = pruned_name(dense, model_type)
        doc = f"Configuration of a pruned {dense.__name__.removesuffix('Config')} model."
        names: dict[str, Any] = {"__module__": __name__, "__doc__": doc, "model_type": EXPORTED + model_type}
        names |= {"pgb": None, "dense_class": dense}
        made = _CLASSES[model_type] = globals()[name] = type(name, (PrunedConfig, dense), names)
        AutoConfig.register(EXPORTED + model_type, made)
    for use in ON_USE:
        use(made)
    return made


def pruned_name(dense: type, model_type: str) -> str:
    """Return the name of the class for pruned models that is derived from a configuration's or a model's class.

    For a class outside transformers with the name of a transformers class, the name also contains the model type.
    """
    if dense.__module__.startswith("transformers.") or not hasattr(transformers, dense.__name__):
        return PREFIX + dense.__name__
    return "_".join([PREFIX, re.sub(r"\W", "_", model_type), dense.__name__])


def known_types() -> list[str]:
    """Return the types of dense models that were announced and that transformers knows."""
    return [model_type for model_type in _CLASSES if model_type in CONFIG_MAPPING]


def __getattr__(name: str) -> Any:
    """Return the class of a given name, for example for ``pickle``. It is created on first use."""
    for model_type in known_types() if name.startswith(PREFIX) else []:
        if pruned_name(CONFIG_MAPPING[model_type], model_type) == name:
            return pruned_config(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
