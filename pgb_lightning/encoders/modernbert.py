"""ModernBERT: pre-norm, rotary positions, fused matrices, gated feed-forward, local attention in most layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.family import Family


def _attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    # In a layer with local attention, the mask determines which tokens are visible.
    return hidden + layer.attn(layer.attn_norm(hidden), **arguments)[0]  # type: ignore[no-any-return, operator]


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return hidden + layer.mlp(layer.mlp_norm(hidden))  # type: ignore[no-any-return, operator]


MODERNBERT = Family(
    layers="layers",
    paths={
        "Q": "attn.Wqkv",
        "K": "attn.Wqkv",
        "V": "attn.Wqkv",
        "O": "attn.Wo",
        "W1": "mlp.Wi",
        "W3": "mlp.Wi",
        "W2": "mlp.Wo",
    },
    cores={"attention": "attn", "ffn": "mlp"},
    attend=_attend,
    feed=_feed,
    norms={"attention": "attn_norm", "ffn": "mlp_norm"},
    bias_settings={"attention": "attention_bias", "ffn": "mlp_bias"},
    tokenwise=("mlp", "forward"),
    arguments=("attention_mask", "position_embeddings"),
    needs_arguments=True,
    timed_settings=("local_attention",),
)
