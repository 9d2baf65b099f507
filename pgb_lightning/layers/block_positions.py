"""Checks of the positions of blocks in a matrix, as stored in plans."""

from __future__ import annotations


def as_tuples(name: str, index: list[list[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    """Convert the positions of blocks, read from JSON as lists, to tuples.

    Raises:
        TypeError: If a position is not an integer.
    """
    frozen = None if index is None else tuple(tuple(block) for block in index)
    if any(type(position) is not int for block in frozen or () for position in block):
        raise TypeError(
            f"{name} must be lists of integers, one per block. Use [] to remove the matrix, or null to keep it dense."
        )
    return frozen


def check_blocks(name: str, index: tuple[tuple[int, ...], ...], size: int) -> None:
    """Check that blocks are disjoint, of equal size, and have positions in range(size).

    Raises:
        ValueError: If they are not.
    """
    flat = [position for block in index for position in block]
    if len({len(block) for block in index}) > 1 or any(not block for block in index):
        raise ValueError(f"{name} must have blocks of one size, at least 1. Make all index lists equally long.")
    if len(set(flat)) != len(flat):
        raise ValueError(f"{name} lists a position twice, but blocks must be disjoint. Remove the duplicate.")
    if flat and not 0 <= min(flat) <= max(flat) < size:
        raise ValueError(f"{name} has a position outside 0..{size - 1}. Use positions of the dense matrix.")
