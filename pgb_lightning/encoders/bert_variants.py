"""Models with BERT's layers, but with LayerNorms before the matrices (pre-norm) or rotary positions."""

from __future__ import annotations

from dataclasses import replace

from pgb_lightning.encoders.bert import BERT

MEGATRON_BERT = replace(BERT, norms={"attention": "attention.ln", "ffn": "ln"})

ROBERTA_PRELAYERNORM = replace(BERT, norms={"attention": "attention.LayerNorm", "ffn": "intermediate.LayerNorm"})

XLM_ROBERTA_XL = replace(BERT, norms={"attention": "attention.self_attn_layer_norm", "ffn": "LayerNorm"})

ESM = replace(
    BERT,
    norms={"attention": "attention.LayerNorm", "ffn": "LayerNorm"},
    arguments=("attention_mask", "position_embeddings"),
    needs_arguments=True,  # ESM-2; the absolute positions of ESM-1b are in the embeddings
)

ROFORMER = replace(BERT, arguments=("attention_mask", "sinusoidal_pos"), needs_arguments=True)
