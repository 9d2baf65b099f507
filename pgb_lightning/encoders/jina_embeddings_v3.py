"""Jina embeddings v3: NomicBERT's layers with a feed-forward network that is not gated."""

from __future__ import annotations

from dataclasses import replace

from pgb_lightning.encoders.nomic_bert import NOMIC_BERT

JINA_EMBEDDINGS_V3 = replace(
    NOMIC_BERT,
    paths={
        "Q": "self_attn.q_proj",
        "K": "self_attn.k_proj",
        "V": "self_attn.v_proj",
        "O": "self_attn.o_proj",
        "W1": "mlp.fc1",
        "W2": "mlp.fc2",
    },
)
