"""ALBERT, which runs the same weights many times. A "layer" here is a group of its layers, which share all weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pgb_lightning.encoders.family import Family

#: The only layer of a group.
LAYER = "albert_layers.0"


def _attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    # The attention module adds the residual and includes the LayerNorm.
    return layer.get_submodule(LAYER).attention(hidden, **arguments)[0]  # type: ignore[no-any-return, operator]


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    inner = layer.get_submodule(LAYER)
    return inner.full_layer_layer_norm(inner.ff_chunk(hidden) + hidden)  # type: ignore[no-any-return, operator]


def _order(config: PretrainedConfig) -> Sequence[int]:
    runs_of_group = config.num_hidden_layers / config.num_hidden_groups  # rounded as in transformers
    return [int(run / runs_of_group) for run in range(config.num_hidden_layers)]


def _unsupported(config: PretrainedConfig) -> str | None:
    if config.inner_group_num != 1:
        return (
            f"inner_group_num={config.inner_group_num} in its configuration gives each group several layers of their "
            "own. Only 1 is supported, as in all published ALBERT models."
        )
    if config.num_hidden_groups > config.num_hidden_layers:
        return (
            f"num_hidden_groups={config.num_hidden_groups} in its configuration is more than num_hidden_layers="
            f"{config.num_hidden_layers}, so that some groups do not run. Use at most num_hidden_layers groups."
        )
    return None


ALBERT = Family(
    layers="encoder.albert_layer_groups",
    paths={
        "Q": f"{LAYER}.attention.query",
        "K": f"{LAYER}.attention.key",
        "V": f"{LAYER}.attention.value",
        "O": f"{LAYER}.attention.dense",
        "W1": f"{LAYER}.ffn",
        "W2": f"{LAYER}.ffn_output",
    },
    cores={"attention": f"{LAYER}.attention", "ffn": f"{LAYER}.ffn"},
    attend=_attend,
    feed=_feed,
    core_norms={"attention": "LayerNorm"},
    tokenwise=(LAYER, "ff_chunk"),
    head_counts=(f"{LAYER}.attention.num_attention_heads",),
    head_widths=(f"{LAYER}.attention.all_head_size",),
    order=_order,
    unsupported=_unsupported,
)
