"""MPNet, whose layers share one relative position bias with a plane for each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.family import Family


def _attend(model: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    # The bias depends on the positions only, so one sequence is enough.
    bias = model.encoder.compute_position_bias(hidden[:1])  # type: ignore[operator, union-attr]
    return layer.attention(hidden, arguments.get("attention_mask"), bias)[0]  # type: ignore[no-any-return, operator]


def _feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return layer.output(layer.intermediate(hidden), hidden)  # type: ignore[no-any-return, operator]


MPNET = Family(
    layers="encoder.layer",
    paths={
        "Q": "attention.attn.q",
        "K": "attention.attn.k",
        "V": "attention.attn.v",
        "O": "attention.attn.o",
        "W1": "intermediate.dense",
        "W2": "output.dense",
    },
    cores={"attention": "attention.attn", "ffn": "intermediate"},
    attend=_attend,
    feed=_feed,
    needs_all_heads=True,  # the position bias has one plane per head
    attention_table="encoder.relative_attention_bias",
)
