"""BERT and the models with its layers: RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.family import Family


def _attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    return layer.attention(hidden, **arguments)[0]  # type: ignore[no-any-return, operator]


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return layer.feed_forward_chunk(hidden)  # type: ignore[no-any-return, operator]


BERT = Family(
    layers="encoder.layer",
    paths={
        "Q": "attention.self.query",
        "K": "attention.self.key",
        "V": "attention.self.value",
        "O": "attention.output.dense",
        "W1": "intermediate.dense",
        "W2": "output.dense",
    },
    cores={"attention": "attention.self", "ffn": "intermediate"},
    attend=_attend,
    feed=_feed,
    tokenwise=("", "feed_forward_chunk"),
)
