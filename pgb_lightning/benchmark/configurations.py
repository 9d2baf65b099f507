"""Configurations of published encoders, where they differ from the defaults of their class in transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from pgb_lightning.encoders.families import FAMILIES


@dataclass(frozen=True)
class Published:
    """The configuration of a published encoder.

    Args:
        model_type: The transformers ``model_type``.
        settings: The settings that differ from the defaults.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)


#: The published configurations by name.
PUBLISHED: dict[str, Published] = {
    "bert-base": Published("bert"),
    "mpnet-base": Published("mpnet", {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}),
    "xlm-roberta-base": Published(
        "xlm-roberta",
        {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "ModernBERT-base": Published("modernbert"),
    "deberta-v3-base": Published(
        "deberta-v2",
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    "nomic-embed-text-v1.5": Published("nomic_bert"),
    "EuroBERT-210m": Published("eurobert", {"rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}}),
    "EuroBERT-610m": Published(
        "eurobert",
        {
            "hidden_size": 1152,
            "num_hidden_layers": 26,
            "num_attention_heads": 18,
            "num_key_value_heads": 6,
            "intermediate_size": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
        },
    ),
}


def full_size_config(name: str, num_layers: int | None = None, **settings: Any) -> PretrainedConfig:
    """Return the configuration of a published encoder, or of the base size of a family.

    Args:
        name: A name in :data:`PUBLISHED`, or the transformers ``model_type`` of a registered family, for the defaults
            of its configuration.
        num_layers: Number of layers; by default that of the configuration.
        settings: Other settings that replace those of the configuration.

    Raises:
        ValueError: If the name is unknown, or the family of a published encoder is not registered.

    Example:
        >>> full_size_config("ModernBERT-base").num_hidden_layers, full_size_config("bert", 2).num_hidden_layers
        (22, 2)
    """
    known = PUBLISHED.get(name, Published(name))
    if known.model_type not in FAMILIES:
        choices = [each for each, published in PUBLISHED.items() if published.model_type in FAMILIES]
        raise ValueError(
            f"architecture={name!r} is not supported. Choose one of {', '.join([*sorted(FAMILIES), *choices])}."
        )
    changes = dict(settings)
    if num_layers is not None:
        names: dict[str, str] = CONFIG_MAPPING[known.model_type].attribute_map
        changes[names.get("num_hidden_layers", "num_hidden_layers")] = num_layers
    return AutoConfig.for_model(known.model_type, **known.settings | changes)
