"""A common interface to the layers that can hold a matrix of an encoder: dense, grouped, or only a bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class BlockShape(NamedTuple):
    """The number of blocks of a matrix and their size.

    Args:
        groups: G, the number of blocks.
        inputs: m, the inputs of a block.
        outputs: n, the outputs of a block.
    """

    groups: int
    inputs: int
    outputs: int


class BlockIndex(NamedTuple):
    """The positions of the blocks of a matrix.

    Args:
        rows: The inputs of each block, (G, m), int64.
        columns: The outputs of each block, (G, n), int64.
    """

    rows: Tensor
    columns: Tensor


#: The block shape of a matrix that is removed.
REMOVED = BlockShape(0, 0, 0)


class MatrixLayer(Protocol):
    """A layer that computes ``x @ W + bias`` for an M x N matrix W, all or some blocks of which are kept."""

    @property
    def in_features(self) -> int:
        """M."""

    @property
    def out_features(self) -> int:
        """N."""

    @property
    def bias(self) -> Tensor | None:
        """The bias (N), if there is one."""

    @property
    def block_shape(self) -> BlockShape | None:
        """G, m and n; :data:`REMOVED` if the matrix is removed, ``None`` if it is dense."""

    def index(self) -> BlockIndex:
        """Return the positions of the blocks; a dense matrix is one block."""

    def kept_weights(self) -> Tensor:
        """Return the weights of the blocks, (G, m, n), as a view of the parameter."""

    def dense_weight(self) -> Tensor:
        """Return W with zeros outside the blocks, as an ``nn.Linear`` weight of shape (N, M)."""


@dataclass(frozen=True)
class DenseMatrix:
    """A plain ``nn.Linear`` as a :class:`MatrixLayer`.

    Args:
        linear: The layer.
    """

    linear: nn.Linear
    block_shape: None = None

    @property
    def in_features(self) -> int:
        """M."""
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        """N."""
        return self.linear.out_features

    @property
    def bias(self) -> Tensor | None:
        """The bias (N), if there is one."""
        return self.linear.bias

    def index(self) -> BlockIndex:
        """Return all inputs and all outputs, as one block."""
        device = self.linear.weight.device
        rows, columns = (torch.arange(size, device=device) for size in (self.in_features, self.out_features))
        return BlockIndex(rows.view(1, -1), columns.view(1, -1))

    def kept_weights(self) -> Tensor:
        """Return W as one block, (1, M, N)."""
        return self.linear.weight.T.unsqueeze(0)

    def dense_weight(self) -> Tensor:
        """Return the weight, (N, M)."""
        return self.linear.weight


def as_matrix(module: nn.Module) -> MatrixLayer:
    """Return the :class:`MatrixLayer` interface of a layer.

    Args:
        module: An ``nn.Linear``, or one of the layers of this package.

    Raises:
        TypeError: If it is another module.

    Example:
        >>> as_matrix(nn.Linear(4, 2)).kept_weights().shape
        torch.Size([1, 4, 2])
    """
    if isinstance(module, nn.Linear):
        return DenseMatrix(module)
    if not hasattr(module, "kept_weights"):
        cls = type(module)
        raise TypeError(
            f"{cls.__module__}.{cls.__qualname__} holds a matrix of the encoder, but is neither an nn.Linear nor a "
            "pruned layer. Merge adapters and undo quantization first."
        )
    return module  # type: ignore[return-value]


def find_matrix_layer(module: nn.Module | None) -> MatrixLayer | None:
    """Return the :class:`MatrixLayer` interface of a layer, or ``None`` if there is none, as for adapters."""
    try:
        return None if module is None else as_matrix(module)
    except TypeError:
        return None
