"""DeBERTa, the first version: one fused linear layer for Q, K and V, whose features alternate head by head."""

from __future__ import annotations

from transformers import PretrainedConfig

from pgb_lightning.encoders.disentangled import TIMED, attend, feed
from pgb_lightning.encoders.family import Family


def _unsupported(config: PretrainedConfig) -> str | None:
    if getattr(config, "talking_head", False):
        return "talking_head=True mixes its heads, so that none can be removed. Only talking_head=False is supported."
    return None


DEBERTA = Family(
    layers="encoder.layer",
    paths={
        "Q": "attention.self.in_proj",
        "K": "attention.self.in_proj",
        "V": "attention.self.in_proj",
        "O": "attention.output.dense",
        "W1": "intermediate.dense",
        "W2": "output.dense",
    },
    cores={"attention": "attention.self", "ffn": "intermediate"},
    attend=attend,
    feed=feed,
    interleaved=True,
    shared_arguments=("relative_pos", "rel_embeddings"),
    timed_settings=TIMED,
    followers=(
        "attention.self.q_bias",
        "attention.self.v_bias",
        "attention.self.pos_proj",
        "attention.self.pos_q_proj",
    ),
    head_counts=("attention.self.num_attention_heads",),
    position_modules=("encoder.rel_embeddings",),
    unsupported=_unsupported,
)
