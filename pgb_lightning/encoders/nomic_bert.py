"""NomicBERT and GTE: BERT's post-norm with rotary positions and a gated feed-forward network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.family import Family


def _attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    context = layer.post_attention_dropout(layer.self_attn(hidden, **arguments)[0])  # type: ignore[operator]
    return layer.post_attention_layernorm(hidden + context)  # type: ignore[no-any-return, operator]


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    output = layer.post_mlp_dropout(layer.mlp(hidden))  # type: ignore[operator]
    return layer.post_mlp_layernorm(hidden + output)  # type: ignore[no-any-return, operator]


NOMIC_BERT = Family(
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
    tokenwise=("mlp", "forward"),
    arguments=("attention_mask", "position_embeddings"),
    needs_arguments=True,
    runs_first_layers=True,
)
