"""The widths that are tried, and ``width_multiple``, of which they are multiples."""

from __future__ import annotations

import math

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.plan import MatrixPlan

#: Smallest number of widths that are tried for a feed-forward sublayer, if it has as many neurons.
WIDTHS = 48

#: What is counted in each sublayer, by its closing matrix.
COUNTED = {"O": "features of heads", "W2": "neurons"}


def width_step(neurons: int, multiple: int = 1) -> int:
    """Return the step between the widths that are tried: a power of two, for efficient matrix products.

    Args:
        neurons: The neurons of the dense sublayer.
        multiple: The step is a multiple of this number, too.

    Example:
        >>> [width_step(neurons) for neurons in (4096, 3072, 1536, 512, 40)]
        [64, 64, 32, 8, 1]
        >>> width_step(1536, multiple=64), width_step(1536, multiple=24)
        (64, 96)
    """
    return math.lcm(1 << max((neurons // WIDTHS).bit_length() - 1, 0), multiple)


def has_multiples(matrix: MatrixPlan, multiple: int) -> bool:
    """Return whether the rows and the columns of all blocks are multiples of a number, or all that the matrix has."""
    sides = ((matrix.rows, matrix.input_index), (matrix.columns, matrix.output_index))
    return all(len(block) % multiple == 0 or len(block) == size for size, index in sides for block in index or ())


def check_width_multiple(encoder: Encoder, multiple: int) -> None:
    """Require that ``width_multiple`` divides the neurons and the features of heads of every sublayer.

    Raises:
        ValueError: If it does not: no smaller width would then be a multiple of it and of the steps of the search.
    """
    for (layer, kind), linear in encoder.linears():
        if kind in COUNTED and linear.in_features % multiple:
            largest = math.gcd(linear.in_features, multiple)
            raise ValueError(
                f"width_multiple={multiple} does not divide the {linear.in_features} {COUNTED[kind]} of layer {layer} "
                f"of the encoder at {encoder.where}. Use a number that does, such as {largest}."
            )
