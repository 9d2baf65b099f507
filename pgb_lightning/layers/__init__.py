"""The layers that replace pruned matrices."""

from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.token_chunks import TokenChunks

#: Raise by one whenever a change alters the run time of these layers: cached latency tables are then measured again.
KERNEL_VERSION = 1

__all__ = [
    "KERNEL_VERSION",
    "ConstantLinear",
    "DroppedCore",
    "GroupedLinear",
    "TokenChunks",
]
