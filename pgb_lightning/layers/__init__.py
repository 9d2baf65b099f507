"""The layers that replace pruned matrices, and dropout with fewer random numbers."""

from pgb_lightning.layers.dropped import DroppedCore, DroppedTable
from pgb_lightning.layers.fast_dropout import Dropout16, use_default_dropout, use_fast_dropout
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import REMOVED, BlockIndex, BlockShape, DenseMatrix, MatrixLayer, as_matrix
from pgb_lightning.layers.token_chunks import TokenChunks

#: Version of the layers' run time, part of the key of cached latency tables. Increase it with every change that affects
#: the speed of a layer.
KERNEL_VERSION = 1

__all__ = [
    "KERNEL_VERSION",
    "REMOVED",
    "BlockIndex",
    "BlockShape",
    "ConstantLinear",
    "DenseMatrix",
    "Dropout16",
    "DroppedCore",
    "DroppedTable",
    "GroupedLinear",
    "MatrixLayer",
    "TokenChunks",
    "as_matrix",
    "use_default_dropout",
    "use_fast_dropout",
]
