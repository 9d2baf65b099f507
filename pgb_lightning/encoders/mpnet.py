"""MPNet, whose layers share one relative position bias with a plane for each head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from pgb_lightning.encoders.family import Family


class SomeHeads(MPNetSelfAttention):
    """MPNet's attention with some of its heads, each with its own plane of the position bias.

    Args:
        config: The configuration.
        heads: The numbers of the heads of the dense layer that are left, in order.
        device: The device of the numbers.
    """

    head_index: Tensor

    def __init__(self, config: Any, heads: Sequence[int], device: torch.device) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        self.register_buffer("head_index", torch.tensor(heads, dtype=torch.int32, device=device))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """Run attention; the position bias (B, H, S, S) has the planes of all heads of the dense layer."""
        if position_bias is not None:
            # The encoder repeats the same bias for every sequence.
            position_bias = position_bias[:1].index_select(1, self.head_index)
        run: Callable[..., tuple[Tensor, ...]] = super().forward
        return run(hidden_states, attention_mask, position_bias, *args, **kwargs)


def _select_heads(model: PreTrainedModel, core: nn.Module, count: int, heads: Sequence[int] | None) -> nn.Module:
    own = core.head_index.tolist() if isinstance(core, SomeHeads) else list(range(model.config.num_attention_heads))
    if count == len(own) and heads is None:
        return core
    # A state dict or a record says how many heads there are; the state dict has their numbers.
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
