"""Which rows a model is calibrated on, and in what order rows are served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.trainer_pt_utils import DistributedLengthGroupedSampler


class LengthGroupedSampler(DistributedLengthGroupedSampler):
    """Give batches of rows of similar lengths in random order, new in every epoch and the same for the same seed.

    transformers' sampler forms the batches, 50 at a time out of random rows, but serves those 50 from the longest
    to the shortest; here their order is random. Lightning leaves it in place under `ddp`, where every process gets its
    share, and batches of about one length at the same time.

    Args:
        lengths: Tokens in each row.
        batch_size: Rows in a batch, on each process.
        num_replicas: Number of processes.
        rank: This process's number.
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
        """Go over one epoch's rows."""
        rows = np.fromiter(super().__iter__(), dtype=np.int64)
        return iter(shuffle_batches(rows, self.batch_size, self.seed + self.epoch).tolist())


def shuffle_batches(rows: NDArray[np.int64], batch_size: int, seed: int) -> NDArray[np.int64]:
    """Shuffle rows a batch at a time; a last batch that is not full stays last.

    Args:
        rows: Any rows.
        batch_size: How many of them, one after the other, are a batch.
        seed: The same seed gives the same order.

    Returns:
        The same rows.

    Example:
        >>> shuffle_batches(np.arange(7), batch_size=3, seed=1).tolist()
        [3, 4, 5, 0, 1, 2, 6]
    """
    full = len(rows) // batch_size
    order = torch.randperm(full, generator=torch.Generator().manual_seed(seed)).numpy()
    batches = rows[: full * batch_size].reshape(full, batch_size)
    return np.concatenate([batches[order].ravel(), rows[full * batch_size :]])


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
