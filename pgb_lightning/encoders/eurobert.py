"""EuroBERT: pre-norm, rotary positions, gated feed-forward, and keys and values shared by several query heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.family import Family


def _attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    return hidden + layer.self_attn(layer.input_layernorm(hidden), **arguments)[0]  # type: ignore[no-any-return, operator]


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # type: ignore[no-any-return, operator]


EUROBERT = Family(
    layers="layers",
    paths={
        "Q": "self_attn.q_proj",
        "K": "self_attn.k_proj",
        "V": "self_attn.v_proj",
        "O": "self_attn.o_proj",
        "W1": "mlp.gate_proj",
        "W3": "mlp.up_proj",
        "W2": "mlp.down_proj",
    },
    cores={"attention": "self_attn", "ffn": "mlp"},
    attend=_attend,
    feed=_feed,
    norms={"attention": "input_layernorm", "ffn": "post_attention_layernorm"},
    bias_settings={"attention": "attention_bias", "ffn": "mlp_bias"},
    tokenwise=("mlp", "forward"),
    arguments=("attention_mask", "position_embeddings"),
    needs_arguments=True,
    runs_first_layers=True,
)
