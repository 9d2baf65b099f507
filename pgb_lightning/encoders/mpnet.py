"""MPNet, whose layers share one relative position bias with a separate matrix for each head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.family import Family


def _select_heads(model: PreTrainedModel, core: nn.Module, count: int, heads: Sequence[int] | None) -> nn.Module:
    # transformers imports models lazily, so import this only for an MPNet.
    from pgb_lightning.encoders.mpnet_attention import SomeHeads

    own = core.head_index.tolist() if isinstance(core, SomeHeads) else list(range(model.config.num_attention_heads))
    if count == len(own) and heads is None:
        return core
    # Only the number of heads is known from a state dict or a record; which they are is loaded from the state dict.
    left = list(range(count)) if heads is None else [own[head] for head in heads]
    with torch.device("meta"):
        new = SomeHeads(model.config, left, next(core.parameters()).device)
    for name, child in core.named_children():
        setattr(new, name, child)
    new.training = core.training
    return new


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
    head_counts=("attention.attn.num_attention_heads",),
    head_widths=("attention.attn.all_head_size",),
    select_heads=_select_heads,
    attention_table="encoder.relative_attention_bias",
)
