"""Second moments of a layer's inputs and outputs, accumulated batch by batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pgb_lightning.modes import without_autocast

#: Sums a tensor over all processes that share a calibration; with one process, returns it unchanged.
AllReduce = Callable[[Tensor], Tensor]

#: Number of columns of XᵀX that are computed at a time.
STRIPE = 256


def add_gram(gram: Tensor, x: Tensor) -> None:
    """Add the lower triangle of XᵀX to a sum, in stripes of columns, which takes about half the operations.

    Args:
        gram: The sum, (..., M, M), modified in place. :func:`symmetric_from_lower` restores the upper triangle.
        x: X, (..., T, M).
    """
    with without_autocast(x.device):
        for start in range(0, x.shape[-1], STRIPE):
            stripe = slice(start, start + STRIPE)
            gram[..., start:, stripe] += x[..., start:].transpose(-1, -2) @ x[..., stripe]


def symmetric_from_lower(gram: Tensor) -> Tensor:
    """Return the symmetric matrix with the given lower triangle, (..., M, M)."""
    return gram.tril() + gram.tril(-1).transpose(-1, -2)


class Moments:
    """Centered second moments of inputs x (T, M) and targets y (T, N) for the blocks of a matrix, in float64.

    Args:
        rows: Indices of the inputs of each block, (G, m).
        columns: Indices of the targets of each block, (G, n).
        num_inputs: M.
        num_targets: N.

    Attributes:
        gram: Centered xᵀx of each block's inputs, (G, m, m).
        cross: Centered xᵀy of each block's inputs and targets, (G, m, n).
        mean_x: Means of all inputs, (M,).
        mean_y: Means of all targets, (N,).
        total_squares: Sum of the squared deviations of all targets from their means, (1,).
        count: Number of vectors T, (1,).
    """

    def __init__(self, rows: Tensor, columns: Tensor, num_inputs: int, num_targets: int) -> None:
        (groups, m), (_, n) = rows.shape, columns.shape
        zeros = partial(torch.zeros, dtype=torch.float64, device=rows.device)
        self.rows, self.columns = rows, columns
        self.is_full = torch.equal(rows, torch.arange(num_inputs, device=rows.device).view(1, -1))
        self.gram = zeros(groups, m, m)
        self.cross = zeros(groups, m, n)
        self.mean_x = zeros(num_inputs)
        self.mean_y = zeros(num_targets)
        self.total_squares = zeros(1)
        self.count = zeros(1)
        self.origin = zeros(num_inputs)
        self._is_empty = True  # on the host, since reading the count would wait for the device

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the inputs (T, M) and targets (T, N) of a batch of tokens."""
        # Products are computed in single precision and accumulated in double precision. Subtracting the mean of the
        # first batch, which does not change centered moments, avoids cancellation for inputs far from zero.
        if self._is_empty and len(x):
            self.origin = x.mean(0, dtype=torch.float64)
            self._is_empty = False
        x = x.float() - self.origin.float()
        y = y.float()
        blocks = x.unsqueeze(0) if self.is_full else x[:, self.rows].transpose(0, 1)
        add_gram(self.gram, blocks)
        with without_autocast(x.device):
            self.cross += torch.bmm(blocks.transpose(1, 2), y[:, self.columns].transpose(0, 1))
        self.mean_x += x.sum(0, dtype=torch.float64)
        self.mean_y += y.sum(0, dtype=torch.float64)
        self.total_squares += y.square().sum(0).double().sum()
        self.count += len(x)

    def finish(self, all_reduce: AllReduce) -> None:
        """Sum over processes and subtract the means. Call once."""
        self.gram = symmetric_from_lower(self.gram)
        self._remove_origin()  # each process has its own origin
        for name in ("gram", "cross", "mean_x", "mean_y", "total_squares", "count"):
            setattr(self, name, all_reduce(getattr(self, name)))
        self.mean_x /= self.count.clamp_min(1)
        self.mean_y /= self.count.clamp_min(1)
        x, y = self.mean_x[self.rows], self.mean_y[self.columns]
        self.gram.addcmul_(x.unsqueeze(2), (self.count * x).unsqueeze(1), value=-1)
        self.cross.addcmul_(x.unsqueeze(2), (self.count * y).unsqueeze(1), value=-1)
        self.total_squares -= self.count * self.mean_y.square().sum()

    def uncentered(self) -> Moments:
        """Return the uncentered moments, for a matrix without a bias that could absorb the means.

        The moments must be finished. The means of the result are zero.
        """
        raw = copy.copy(self)
        x, y = self.mean_x[self.rows], self.mean_y[self.columns]
        raw.gram = self.gram + self.count * x.unsqueeze(2) * x.unsqueeze(1)
        raw.cross = self.cross + self.count * x.unsqueeze(2) * y.unsqueeze(1)
        raw.total_squares = self.total_squares + self.count * self.mean_y.square().sum()
        raw.mean_x, raw.mean_y = torch.zeros_like(self.mean_x), torch.zeros_like(self.mean_y)
        return raw

    def power(self, rows: Tensor) -> Tensor:
        """Return the uncentered sum of squares of some inputs, averaged over the inputs of each block.

        Args:
            rows: Indices of the inputs, (G, m). The moments must contain their variances.

        Returns:
            The sums, (G,).
        """
        variances = self.gram.diagonal(dim1=1, dim2=2)
        known = torch.zeros_like(self.mean_x).index_put_((self.rows,), variances)
        return (known + self.count * self.mean_x.square())[rows].mean(1)

    def merged(self, other: Moments) -> Moments:
        """Return the moments of the union of two sets of tokens. Both must be finished."""
        merged = copy.copy(self)
        merged.count = self.count + other.count
        weight = self.count * other.count / merged.count.clamp_min(1)
        x, y = self.mean_x - other.mean_x, self.mean_y - other.mean_y
        rows, columns = x[self.rows], y[self.columns]
        merged.gram = self.gram + other.gram + weight * rows.unsqueeze(2) * rows.unsqueeze(1)
        merged.cross = self.cross + other.cross + weight * rows.unsqueeze(2) * columns.unsqueeze(1)
        merged.total_squares = self.total_squares + other.total_squares + weight * y.square().sum()
        fraction = other.count / merged.count.clamp_min(1)
        merged.mean_x, merged.mean_y = self.mean_x - fraction * x, self.mean_y - fraction * y
        return merged

    def _remove_origin(self) -> None:
        """Convert sums over x - origin to sums over x."""
        origin = self.origin.float().double()
        shift, total = origin[self.rows], self.mean_x[self.rows]
        # In place, since a copy of the moments of W2's inputs is large.
        self.gram.addcmul_(shift.unsqueeze(2), (total + self.count * shift).unsqueeze(1))
        self.gram.addcmul_(total.unsqueeze(2), shift.unsqueeze(1))
        self.cross.addcmul_(shift.unsqueeze(2), self.mean_y[self.columns].unsqueeze(1))
        self.mean_x += self.count * origin


class Covariance:
    """Covariance of vectors in float64, accumulated batch by batch.

    Args:
        size: Length of a vector, M.
        device: Device of the sums.

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
        """Number of vectors added so far, (1,)."""
        return self._moments.count

    @property
    def mean(self) -> Tensor:
        """Mean of the vectors, (M,); valid after :meth:`finish`."""
        return self._moments.mean_x

    def add(self, x: Tensor) -> None:
        """Add vectors, (T, M)."""
        self._moments.add(x, x[:, :0])

    def finish(self, all_reduce: AllReduce = lambda tensor: tensor) -> Tensor:
        """Return the covariance over all processes, (M, M). Call once."""
        self._moments.finish(all_reduce)
        return self._moments.gram[0].div_(self._moments.count.clamp_min(1))
