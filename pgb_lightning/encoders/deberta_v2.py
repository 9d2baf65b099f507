"""DeBERTa-v2 and v3: disentangled attention, whose Q and K may also be applied to relative positions."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.encoders.disentangled import POSITIONAL, TIMED, attend, feed, positions_of
from pgb_lightning.encoders.family import Family


def _between(model: PreTrainedModel, step: int, first: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    # conv_kernel_size: a convolution of the embeddings is added after the first layer.
    convolution = cast(Any, model.encoder).conv
    return hidden if step > 0 or convolution is None else convolution(first, hidden, tokens.long())


DEBERTA_V2 = Family(
    layers="encoder.layer",
    paths={
        "Q": "attention.self.query_proj",
        "K": "attention.self.key_proj",
        "V": "attention.self.value_proj",
        "O": "attention.output.dense",
        "W1": "intermediate.dense",
        "W2": "output.dense",
    },
    cores={"attention": "attention.self", "ffn": "intermediate"},
    attend=attend,
    feed=feed,
    shared_arguments=("relative_pos", "rel_embeddings"),
    timed_settings=(*TIMED, "share_att_key", "position_buckets"),
    followers=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
    head_counts=("attention.self.num_attention_heads",),
    also_read={kind: positions_of(kind) for kind in POSITIONAL},
    position_modules=("encoder.rel_embeddings", "encoder.LayerNorm"),
    between=_between,
)
