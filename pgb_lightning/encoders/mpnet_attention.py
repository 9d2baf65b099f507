"""MPNet's attention with a subset of its heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention


class SomeHeads(MPNetSelfAttention):
    """MPNet's attention with a subset of its heads, each with its own matrix of the position bias.

    Args:
        config: The configuration.
        heads: The kept heads' numbers in the dense layer, in order.
        device: The device of the numbers.
    """

    head_index: Tensor

    def __init__(self, config: Any, heads: Sequence[int], device: torch.device) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        with torch.inference_mode(False):  # A model that is loaded in inference mode can be trained.
            index = torch.tensor(heads, dtype=torch.int32, device=device)
        self.register_buffer("head_index", index)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """Run attention; the position bias (B, H, S, S) has matrices for all heads of the dense layer."""
        if position_bias is not None:
            # The encoder repeats the same bias for every sequence.
            position_bias = position_bias[:1].index_select(1, self.head_index)
        run: Callable[..., tuple[Tensor, ...]] = super().forward
        return run(hidden_states, attention_mask, position_bias, *args, **kwargs)
