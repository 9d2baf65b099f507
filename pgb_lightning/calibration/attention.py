"""Attention implementations that calibration and compensation cannot use."""

from __future__ import annotations

import torch

from pgb_lightning._compat import attention_implementation
from pgb_lightning.encoders.base import Encoder

#: The data types that flash attention supports.
HALF = (torch.float16, torch.bfloat16)


def check_attention(encoder: Encoder) -> None:
    """Check that the attention implementation computes gradients on the encoder's device and in its precision.

    Raises:
        ValueError: If flash attention would run in single precision (even if training uses autocast), or flex attention
            on a CPU.
    """
    name = attention_implementation(encoder.model.config) or ""
    device, dtype = encoder.model.device.type, encoder.model.dtype
    if "flash" in name and dtype not in HALF:
        reason = f"computes in half precision only, but the encoder at {encoder.where} has {dtype} weights"
    elif name == "flex_attention" and device == "cpu":
        reason = f"has no gradients on a CPU, but the encoder at {encoder.where} is on a CPU"
    else:
        return
    raise ValueError(
        f'attn_implementation="{name}" {reason}. Call set_attn_implementation("sdpa") of the transformers model before '
        "pruning; you can change it back afterwards."
    )
