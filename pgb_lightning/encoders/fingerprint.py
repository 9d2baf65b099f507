"""A hash of an encoder's dense weights, stored in a plan to identify the model for which it was made."""

from __future__ import annotations

import hashlib

import torch

from pgb_lightning.encoders.base import Encoder


@torch.no_grad()
def fingerprint(encoder: Encoder) -> str:
    """Hash the prunable weights of an encoder together with their layer index, matrix kind, shape and dtype.

    The fingerprint does not depend on the device. It differs between dtypes.

    Args:
        encoder: A dense encoder.

    Returns:
        The first 16 hexadecimal digits of a SHA-256 hash.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from pgb_lightning.encoders.find import find_encoder
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
