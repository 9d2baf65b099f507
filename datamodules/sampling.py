"""Which rows a model is calibrated on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def calibration_rows(labels: NDArray[Any] | None, count: int, size: int, seed: int) -> NDArray[np.int64]:
    """Draw rows without replacement, each class in its share of the whole.

    The rows are ordered so that every prefix keeps the shares too, hence so does every batch (to within the
    rounding of a few rows).

    Args:
        labels: One class a row, or None to draw at random.
        count: Number of rows there are.
        size: Number of rows to draw, at most `count`.
        seed: The same seed draws the same rows.

    Returns:
        `size` different indices below `count`.

    Example:
        >>> rows = calibration_rows(np.array([0] * 90 + [1] * 10), count=100, size=20, seed=0)
        >>> int((rows >= 90).sum())
        2
    """
    order = np.random.default_rng(seed).permutation(count)
    if labels is None:
        return order[:size]
    shuffled = labels[order]
    # A row's position within its own class, between 0 and 1: sorting by it interleaves the classes evenly.
    position = np.empty(count)
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(position, kind="stable")[:size]]
