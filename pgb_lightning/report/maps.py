"""A matrix's importance in the order of its blocks, small enough for a page."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pgb_lightning.plan import Index, MatrixPlan

#: Rows and columns of a map, at most.
CELLS = 96
#: Shades of a cell: one hexadecimal digit.
LEVELS = 16

#: One word a row of cells, one hexadecimal digit a cell.
Map = tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Where a block lies in a matrix whose rows and columns stand in the order of the blocks, as shares of its sides.

    Args:
        top: Where it begins, from above.
        left: Where it begins, from the left.
        height: Its share of the rows.
        width: Its share of the columns.
    """

    top: float
    left: float
    height: float
    width: float

    def holds(self, row: float, column: float) -> bool:
        """Tell whether a place, as shares of the sides, lies in the block."""
        return 0 <= row - self.top < self.height and 0 <= column - self.left < self.width


def blocks_of(matrix: MatrixPlan) -> list[Block]:
    """List the blocks of a permuted matrix; one that is kept whole is a block.

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


def importance_map(importance: Tensor, matrix: MatrixPlan, cells: int = CELLS) -> Map:
    """Shrink a matrix's importance to a few cells, its rows and columns in the order of its blocks.

    What no block holds comes last, in its old order. A cell's shade is the square root of its mean importance, 15 where
    only one cell in a hundred has more.

    Args:
        importance: I, of shape (M, N).
        matrix: The blocks.
        cells: Rows and columns of the map, at most.

    Example:
        >>> whole = MatrixPlan(0, "Q", 2, 2, ((1,),), ((0,),))
        >>> importance_map(torch.tensor([[0.0, 0.25], [1.0, 0.0]]), whole)
        ('f0', '08')
    """
    rows = _order(matrix.input_index, matrix.rows, importance.device)
    columns = _order(matrix.output_index, matrix.columns, importance.device)
    permuted = importance.detach()[rows][:, columns].float()
    size = (min(cells, matrix.rows), min(cells, matrix.columns))
    # Scaled first: importances are tiny, and so are their means.
    means = functional.adaptive_avg_pool2d((permuted / permuted.max().clamp_min(1e-38))[None], size)[0]
    brightest = means.flatten().quantile(0.99, interpolation="higher").clamp_min(1e-38)
    levels = ((means / brightest).clamp(0, 1).sqrt() * (LEVELS - 1)).round().int()
    return tuple("".join(f"{level:x}" for level in row) for row in levels.tolist())


def _order(index: Index, size: int, device: torch.device) -> Tensor:
    """Return all positions: those of the blocks, block by block, then the rest."""
    first = [position for block in index or () for position in block]
    rest = sorted(set(range(size)).difference(first))
    return torch.tensor(first + rest, device=device)
