"""BERT and the models with its layers: RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, ERNIE and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pgb_lightning.encoders.family import Family


def _attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    output: Tensor | tuple[Tensor, ...] = layer.attention(hidden, **arguments)  # type: ignore[operator]
    return output[0] if isinstance(output, tuple) else output  # some models do not return the attention weights


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return layer.feed_forward_chunk(hidden)  # type: ignore[no-any-return, operator]


def _unsupported(config: PretrainedConfig) -> str | None:
    # The layers of decoders also need a cache or the states of an encoder, which the layers alone do not have.
    for name in ("is_decoder", "add_cross_attention"):
        if getattr(config, name, False):
            return f"{name}=True in its configuration makes it a decoder. Use is_decoder=False, or prune the encoder."
    return None


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
    head_counts=("attention.self.num_attention_heads",),
    head_widths=("attention.self.all_head_size",),
    unsupported=_unsupported,
)
