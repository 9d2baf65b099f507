"""DistilBERT, whose attention and feed-forward modules do not include their LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.family import Family


def _attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    context = layer.attention(hidden, **arguments)[0]  # type: ignore[operator]
    return layer.sa_layer_norm(context + hidden)  # type: ignore[no-any-return, operator]


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return layer.output_layer_norm(layer.ffn(hidden) + hidden)  # type: ignore[no-any-return, operator]


DISTILBERT = Family(
    layers="transformer.layer",
    paths={
        "Q": "attention.q_lin",
        "K": "attention.k_lin",
        "V": "attention.v_lin",
        "O": "attention.out_lin",
        "W1": "ffn.lin1",
        "W2": "ffn.lin2",
    },
    cores={"attention": "attention", "ffn": "ffn"},
    attend=_attend,
    feed=_feed,
    num_neurons="hidden_dim",
    tokenwise=("ffn", "ff_chunk"),
)
