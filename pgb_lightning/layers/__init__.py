"""The layers that replace pruned matrices."""

from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.token_chunks import TokenChunks

__all__ = [
    "ConstantLinear",
    "DroppedCore",
    "GroupedLinear",
    "TokenChunks",
]
