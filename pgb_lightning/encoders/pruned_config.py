"""The transformers configurations of pruned models, one class for each family.

They have a model type such as ``pgb-lightning-bert``, under which :mod:`pgb_lightning.export.registered_models`
registers the models, and a record of the encoder's structure. Without this package, transformers reports that name as
an unknown model type.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pgb_lightning.encoders.base import EXPORTED
from pgb_lightning.encoders.families import FAMILIES

#: What the names of pruned models' classes start with; the rest is the name of the transformers class.
PREFIX = "PGB"


class PrunedConfig:
    """Mixin for the configuration of a pruned model.

    Attributes:
        pgb: The record of the structure (:func:`pgb_lightning.surgery.record.make_record`), or ``None``.
    """

    pgb: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as transformers does, with the names of the registered classes as architectures."""
        settings: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        names = settings.get("architectures") or []
        settings["architectures"] = [name if name.startswith(PREFIX) else f"{PREFIX}{name}" for name in names] or None
        return settings


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


def _make_classes() -> dict[str, type[PretrainedConfig]]:
    """Create and register the class of every family, as attributes of this module so that they can be pickled."""
    made: dict[str, type[PretrainedConfig]] = {}
    for model_type in FAMILIES:
        dense = CONFIG_MAPPING[model_type]
        name = f"{PREFIX}{dense.__name__}"
        doc = f"Configuration of a pruned {dense.__name__.removesuffix('Config')} model."
        names = {"__module__": __name__, "__doc__": doc, "model_type": EXPORTED + model_type, "pgb": None}
        made[model_type] = globals()[name] = type(name, (PrunedConfig, dense), names)
        AutoConfig.register(EXPORTED + model_type, made[model_type])
    return made


#: The class for each ``model_type`` of a dense model.
PRUNED_CONFIGS = _make_classes()
