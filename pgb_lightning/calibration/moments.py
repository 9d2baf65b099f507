"""Second moments of a layer's inputs and outputs, accumulated batch by batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

#: Adds a tensor up over all processes that share a calibration; returns it unchanged where there is one.
AllReduce = Callable[[Tensor], Tensor]

#: Columns of XᵀX that are made at a time.
STRIPE = 256


def add_gram(gram: Tensor, x: Tensor) -> None:
    """Add XᵀX to the lower half of sums, stripe by stripe: the upper half mirrors it, and would cost as much again.

    Args:
        gram: Sums, (..., M, M); :func:`symmetric_from_lower` completes them.
        x: Vectors, (..., T, M).
    """
    for start in range(0, x.shape[-1], STRIPE):
        stripe = slice(start, start + STRIPE)
        gram[..., start:, stripe] += x[..., start:].transpose(-1, -2) @ x[..., stripe]


def symmetric_from_lower(gram: Tensor) -> Tensor:
    """Return the whole of a symmetric matrix of which the lower half is given, (..., M, M)."""
    return gram.tril() + gram.tril(-1).transpose(-1, -2)


class Moments:
    """Centred second moments of inputs x (T, M) and targets y (T, N), block by block, in float64.

    Args:
        rows: Inputs of each block, (G, m).
        columns: Targets of each block, (G, n).
        num_inputs: M.
        num_targets: N.
    """

    def __init__(self, rows: Tensor, columns: Tensor, num_inputs: int, num_targets: int) -> None:
        (groups, m), (_, n) = rows.shape, columns.shape
        zeros = partial(torch.zeros, dtype=torch.float64, device=rows.device)
        self.rows, self.columns = rows, columns
        self.whole = torch.equal(rows, torch.arange(num_inputs, device=rows.device).view(1, -1))
        self.gram = zeros(groups, m, m)
        self.cross = zeros(groups, m, n)
        self.mean_x = zeros(num_inputs)
        self.mean_y = zeros(num_targets)
        self.total_squares = zeros(1)  # of all targets, summed up
        self.count = zeros(1)
        self.origin = zeros(num_inputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch of tokens."""
        # Products are made in single precision and summed up in double. Measured from the first batch's mean,
        # which drops out of all centred moments, they lose no digits to inputs far from zero.
        if self.count == 0 and len(x):
            self.origin = x.mean(0, dtype=torch.float64)
        x = x.float() - self.origin.float()
        y = y.float()
        blocks = x.unsqueeze(0) if self.whole else x[:, self.rows].transpose(0, 1)
        add_gram(self.gram, blocks)
        self.cross += torch.bmm(blocks.transpose(1, 2), y[:, self.columns].transpose(0, 1))
        self.mean_x += x.sum(0, dtype=torch.float64)
        self.mean_y += y.sum(0, dtype=torch.float64)
        self.total_squares += y.square().sum(0).double().sum()
        self.count += len(x)

    def finish(self, all_reduce: AllReduce) -> None:
        """Sum over processes and take out the means."""
        self.gram = symmetric_from_lower(self.gram)
        self._measure_from_zero()  # processes have origins of their own
        for name in ("gram", "cross", "mean_x", "mean_y", "total_squares", "count"):
            setattr(self, name, all_reduce(getattr(self, name)))
        self.mean_x /= self.count.clamp_min(1)
        self.mean_y /= self.count.clamp_min(1)
        x, y = self.mean_x[self.rows], self.mean_y[self.columns]
        self.gram -= self.count * x.unsqueeze(2) * x.unsqueeze(1)
        self.cross -= self.count * x.unsqueeze(2) * y.unsqueeze(1)
        self.total_squares -= self.count * self.mean_y.square().sum()

    def merged(self, other: Moments) -> Moments:
        """Return the moments of these tokens and others; both are finished."""
        merged = copy.copy(self)
        merged.count = self.count + other.count
        weight = self.count * other.count / merged.count.clamp_min(1)
        x, y = self.mean_x - other.mean_x, self.mean_y - other.mean_y
        rows, columns = x[self.rows], y[self.columns]
        merged.gram = self.gram + other.gram + weight * rows.unsqueeze(2) * rows.unsqueeze(1)
        merged.cross = self.cross + other.cross + weight * rows.unsqueeze(2) * columns.unsqueeze(1)
        merged.total_squares = self.total_squares + other.total_squares + weight * y.square().sum()
        share = other.count / merged.count.clamp_min(1)
        merged.mean_x, merged.mean_y = self.mean_x - share * x, self.mean_y - share * y
        return merged

    def _measure_from_zero(self) -> None:
        """Turn sums over x - origin into sums over x."""
        origin = self.origin.float().double()
        shift, total = origin[self.rows], self.mean_x[self.rows]
        self.gram += shift.unsqueeze(2) * total.unsqueeze(1) + total.unsqueeze(2) * shift.unsqueeze(1)
        self.gram += self.count * shift.unsqueeze(2) * shift.unsqueeze(1)
        self.cross += shift.unsqueeze(2) * self.mean_y[self.columns].unsqueeze(1)
        self.mean_x += self.count * origin


class Covariance:
    """Covariance of vectors, in float64, from batches that are read once.

    Args:
        size: Entries of a vector, M.
        device: Where the sums live.

    Example:
        >>> summed = Covariance(2)
        >>> summed.add(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> summed.finish().tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, size: int, device: torch.device | str | None = None) -> None:
        everything = torch.arange(size, device=device).view(1, -1)
        self._moments = Moments(everything, everything[:, :0], size, 0)  # one block, and no targets

    @property
    def count(self) -> Tensor:
        """Vectors so far, (1,)."""
        return self._moments.count

    def add(self, x: Tensor) -> None:
        """Add vectors, (T, M)."""
        self._moments.add(x, x[:, :0])

    def finish(self, all_reduce: AllReduce = lambda tensor: tensor) -> Tensor:
        """Sum over processes; return the covariance, (M, M). To be called once."""
        self._moments.finish(all_reduce)
        return self._moments.gram[0].div_(self._moments.count.clamp_min(1))
