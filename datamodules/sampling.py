"""Draw the calibration rows, and order rows in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.trainer_pt_utils import DistributedLengthGroupedSampler


class LengthGroupedSampler(DistributedLengthGroupedSampler):
    """Sample batches of rows of similar lengths in random order.

    The order changes every epoch and is reproducible for a seed. The sampler of transformers forms 50 batches at a time
    from random rows, and yields them from the longest to the shortest; this class shuffles them. Lightning does not
    replace this sampler under ``ddp``: it gives each process its shard, such that the processes have batches of similar
    lengths at the same time.

    Args:
        lengths: Number of tokens in each row.
        batch_size: Rows in a batch, per process.
        num_replicas: Number of processes.
        rank: Rank of this process.
        seed: The same seed gives the same batches.

    Example:
        >>> lengths = [row % 50 for row in range(6400)]
        >>> rows = list(LengthGroupedSampler(lengths, batch_size=32, num_replicas=1, rank=0, seed=0))
        >>> batch = sorted(lengths[row] for row in rows[640:672])
        >>> batch[-1] - batch[0] < 5
        True
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(batch_size, num_replicas=num_replicas, rank=rank, seed=seed, lengths=list(lengths))

    def __iter__(self) -> Iterator[int]:
        """Iterate over one epoch's row indices."""
        rows = np.fromiter(super().__iter__(), dtype=np.int64)
        return iter(shuffle_batches(rows, self.batch_size, self.seed + self.epoch).tolist())


def shuffle_batches(rows: NDArray[np.int64], batch_size: int, seed: int) -> NDArray[np.int64]:
    """Return rows with their batches in random order. An incomplete last batch stays last.

    Args:
        rows: Row indices.
        batch_size: Number of consecutive rows that form a batch.
        seed: The same seed gives the same order.

    Example:
        >>> shuffle_batches(np.arange(7), batch_size=3, seed=1).tolist()
        [3, 4, 5, 0, 1, 2, 6]
    """
    full = len(rows) // batch_size
    order = torch.randperm(full, generator=torch.Generator().manual_seed(seed)).numpy()
    batches = rows[: full * batch_size].reshape(full, batch_size)
    return np.concatenate([batches[order].ravel(), rows[full * batch_size :]])


def calibration_rows(labels: NDArray[Any] | None, count: int, size: int, seed: int) -> NDArray[np.int64]:
    """Draw rows without replacement, stratified by class.

    The rows are ordered so that every prefix, and hence every batch, has nearly the same class fractions.

    Args:
        labels: One class per row, or ``None`` to draw without stratification.
        count: Number of rows to draw from.
        size: Number of rows to draw, at most ``count``.
        seed: The same seed draws the same rows.

    Returns:
        ``size`` distinct indices below ``count``.

    Example:
        >>> rows = calibration_rows(np.array([0] * 90 + [1] * 10), count=100, size=20, seed=0)
        >>> int((rows >= 90).sum())
        2
    """
    order = np.random.default_rng(seed).permutation(count)
    if labels is None:
        return order[:size]
    shuffled = labels[order]
    # The relative position of a row within its class, in (0, 1). Sorting by it interleaves the classes evenly.
    position = np.empty(count)
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(position, kind="stable")[:size]]
