"""The widths that the search tries, which are multiples of ``width_multiple``."""

from __future__ import annotations

import math

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.plan import MatrixPlan

#: Minimum number of widths that are tried for a feed-forward sublayer with enough neurons for ``width_multiple``.
WIDTHS = 48

#: Name of the features of a sublayer that ``width_multiple`` must divide, by its closing matrix, for messages.
COUNTED = {"O": "features of heads", "W2": "neurons"}


def width_step(neurons: int, multiple: int = 1) -> int:
    """Return the step between the widths that are tried: a power of two, for efficient matrix products.

    Args:
        neurons: The neurons of the dense sublayer.
        multiple: A number of which the step is also a multiple.

    Example:
        >>> [width_step(neurons) for neurons in (4096, 3072, 1536, 512, 40)]
        [64, 64, 32, 8, 1]
        >>> width_step(1536, multiple=64), width_step(1536, multiple=24)
        (64, 96)
    """
    return math.lcm(1 << max((neurons // WIDTHS).bit_length() - 1, 0), multiple)


def has_multiples(matrix: MatrixPlan, multiple: int) -> bool:
    """Return whether the rows and columns of all blocks are multiples of a number, or are all those of the matrix."""
    sides = ((matrix.rows, matrix.input_index), (matrix.columns, matrix.output_index))
    return all(len(block) % multiple == 0 or len(block) == size for size, index in sides for block in index or ())


def check_width_multiple(encoder: Encoder, multiple: int) -> None:
    """Check that ``width_multiple`` divides the number of neurons and of head features of every sublayer.

    Raises:
        ValueError: If it does not, since no smaller width would be a multiple of it and of the steps of the search.
    """
    for (layer, kind), linear in encoder.linears():
        if kind in COUNTED and linear.in_features % multiple:
            largest = math.gcd(linear.in_features, multiple)
            raise ValueError(
                f"width_multiple={multiple} does not divide the {linear.in_features} {COUNTED[kind]} of layer {layer} "
                f"of the encoder at {encoder.where}. Use a number that does, such as {largest}."
            )
