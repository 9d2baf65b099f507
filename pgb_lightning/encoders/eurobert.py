"""EuroBERT: pre-norm, rotary positions, gated feed-forward, and keys and values shared by several query heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.nomic_bert import NOMIC_BERT


def _attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    return hidden + layer.self_attn(layer.input_layernorm(hidden), **arguments)[0]  # type: ignore[no-any-return, operator]


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # type: ignore[no-any-return, operator]


EUROBERT = replace(
    NOMIC_BERT,  # the same matrices
    attend=_attend,
    feed=_feed,
    norms={"attention": "input_layernorm", "ffn": "post_attention_layernorm"},
    bias_settings={"attention": "attention_bias", "ffn": "mlp_bias"},
)
