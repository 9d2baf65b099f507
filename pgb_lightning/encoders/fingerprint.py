"""A short name for an encoder's dense weights, by which a plan knows the model it was made for."""

from __future__ import annotations

import hashlib

import torch

from pgb_lightning.encoders.base import Encoder


@torch.no_grad()
def fingerprint(encoder: Encoder) -> str:
    """Hash the weights that can be pruned, with their places and shapes.

    The same weights give the same fingerprint on every device; another type of number gives another one.

    Args:
        encoder: A dense encoder.

    Returns:
        Sixteen hexadecimal digits.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from pgb_lightning.encoders.base import find_encoder
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> len(fingerprint(find_encoder(BertModel(tiny))))
        16
    """
    digest = hashlib.sha256(encoder.model_type.encode())
    for (layer, kind), linear in encoder.linears():
        weight = linear.weight.detach().cpu().contiguous()
        digest.update(f"{layer} {kind} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
