"""MPNet: one relative position bias, with a plane for each head, is shared by all layers."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Family


def _mpnet_attend(model: PreTrainedModel, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    # All layers share the bias, which depends on the places alone: one sequence's does for all.
    bias = model.encoder.compute_position_bias(hidden[:1])  # type: ignore[operator, union-attr]
    return layer.attention(hidden, mask, bias)[0]  # type: ignore[no-any-return, operator]


def _mpnet_feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return layer.output(layer.intermediate(hidden), hidden)  # type: ignore[no-any-return, operator]


MPNET = Family(
    layers="encoder.layer",
    paths={
        **{kind: f"attention.attn.{kind.lower()}" for kind in "QKVO"},
        **{"W1": "intermediate.dense", "W2": "output.dense"},
    },
    cores={"attention": "attention.attn", "ffn": "intermediate"},
    attend=_mpnet_attend,
    feed=_mpnet_feed,
    tokenwise=None,
    num_neurons="intermediate_size",
    needs_all_heads=True,  # the position bias has a plane for each
)
