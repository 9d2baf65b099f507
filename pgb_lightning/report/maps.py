"""Downsampled importance of a matrix in block order, small enough for a page."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pgb_lightning.plan import Index, MatrixPlan

#: Maximum number of rows and columns of a map.
CELLS = 96
#: Number of shades of a cell, which is one hexadecimal digit.
LEVELS = 16

#: One string per row of cells, one hexadecimal digit per cell.
ImportanceMap = tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Position of a block in a matrix in block order, as fractions of the number of rows and columns.

    Args:
        top: The first row.
        left: The first column.
        height: The number of rows.
        width: The number of columns.
    """

    top: float
    left: float
    height: float
    width: float

    def contains(self, row: float, column: float) -> bool:
        """Return whether a position, as fractions of the number of rows and columns, is in the block."""
        return 0 <= row - self.top < self.height and 0 <= column - self.left < self.width


def blocks_of(matrix: MatrixPlan) -> list[Block]:
    """Return the blocks of a matrix in block order. A dense matrix is one block.

    Example:
        >>> blocks_of(MatrixPlan(0, "Q", 4, 4, ((0, 2), (1, 3)), ((3, 0), (1, 2))))[1]
        Block(top=0.5, left=0.5, height=0.5, width=0.5)
    """
    if matrix.input_index is None or matrix.output_index is None:
        return [Block(0.0, 0.0, 1.0, 1.0)]
    if not matrix.num_groups:
        return []
    height = len(matrix.input_index[0]) / matrix.rows
    width = len(matrix.output_index[0]) / matrix.columns
    return [Block(g * height, g * width, height, width) for g in range(matrix.num_groups)]


def importance_map(importance: Tensor, matrix: MatrixPlan, cells: int = CELLS) -> ImportanceMap:
    """Downsample the importance of a matrix, with its rows and columns in block order.

    Rows and columns outside the blocks come last, in their original order. The shade of a cell is the square root of
    its mean importance, scaled so that 15 is the 99th percentile of the cells.

    Args:
        importance: The importance I, of shape (M, N).
        matrix: The plan of the matrix.
        cells: Maximum number of rows and columns of the map.

    Example:
        >>> single = MatrixPlan(0, "Q", 2, 2, ((1,),), ((0,),))
        >>> importance_map(torch.tensor([[0.0, 0.25], [1.0, 0.0]]), single)
        ('f0', '08')
    """
    rows = _order(matrix.input_index, matrix.rows, importance.device)
    columns = _order(matrix.output_index, matrix.columns, importance.device)
    permuted = importance.detach()[rows][:, columns].float().nan_to_num()
    size = (min(cells, matrix.rows), min(cells, matrix.columns))
    # Scale first, because importances are so small that their means would underflow.
    means = functional.adaptive_avg_pool2d((permuted / permuted.max().clamp_min(1e-38))[None], size)[0]
    brightest = means.flatten().quantile(0.99, interpolation="higher").clamp_min(1e-38)
    levels = ((means / brightest).clamp(0, 1).sqrt() * (LEVELS - 1)).round().int()
    return tuple("".join(f"{level:x}" for level in row) for row in levels.tolist())


def _order(index: Index, size: int, device: torch.device) -> Tensor:
    """Return all indices: those of the blocks, block by block, then the rest."""
    first = [i for block in index or () for i in block]
    rest = sorted(set(range(size)).difference(first))
    return torch.tensor(first + rest, device=device)
