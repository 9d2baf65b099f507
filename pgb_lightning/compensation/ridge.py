"""How strongly Eq. 4 pulls towards the original weights: what serves held-out calibration samples best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pgb_lightning.calibration.moments import AllReduce, Moments
from pgb_lightning.compensation.least_squares import LeastSquares
from pgb_lightning.config import Ridge, ridge_or_default

#: What "auto" chooses among.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

#: One calibration sample of a batch in so many is held out.
HELD_OUT = 5


class SplitMoments:
    """Moments of a matrix's inputs and targets, those of held-out samples apart.

    Args:
        rows: Inputs of each block, (G, m).
        columns: Targets of each block, (G, n).
        num_inputs: M.
        num_targets: N.
        split: Whether any samples are held out, on any process; else nothing is summed up for them.
    """

    def __init__(self, rows: Tensor, columns: Tensor, num_inputs: int, num_targets: int, split: bool = True) -> None:
        make = partial(Moments, rows, columns, num_inputs, num_targets)
        self.fitted = self.all = make()
        self.held = make() if split else None

    def add(self, x: Tensor, y: Tensor, held: Tensor | None) -> None:
        """Add a batch of tokens.

        Args:
            x: Inputs, (T, M).
            y: Targets, (T, N).
            held: Which tokens are of held-out samples, (T,), bool; ``None`` if none is.
        """
        if held is None or self.held is None:
            self.fitted.add(x, y)
        else:
            self.fitted.add(x[~held], y[~held])
            self.held.add(x[held], y[held])

    def finish(self, all_reduce: AllReduce) -> None:
        """Sum over processes and take out the means."""
        self.fitted.finish(all_reduce)
        if self.held is not None:
            self.held.finish(all_reduce)
            self.all = self.fitted.merged(self.held) if self.held.count else self.fitted


def choose_ridge(
    ridge: Ridge, moments: SplitMoments, problem: Callable[[Moments], LeastSquares], start: Tensor
) -> float:
    """Choose the ridge whose weights, fitted without the held-out samples, leave the least error on those.

    Args:
        ridge: What the user asked for; a number is taken as it is.
        moments: Of the matrix's inputs and targets.
        problem: Makes Eq. 4 of moments.
        start: The weights before, (G, m, n).
    """
    if ridge != "auto" or moments.held is None or not moments.held.count or not moments.fitted.count:
        return ridge_or_default(ridge)
    fitted, held = problem(moments.fitted), problem(moments.held)
    return max(RIDGES, key=lambda choice: held.explained(fitted.solve(start, choice)))


def held_out(tokens: Tensor) -> Tensor:
    """Say which real tokens of a batch are of held-out samples.

    That depends on nothing but the place in the batch, so that it is the same however many processes share the batches:
    each fifth sample, or the last of a smaller batch; none of a batch of one.

    Args:
        tokens: Which positions are real tokens, (B, S), bool.

    Returns:
        For each real token, in order, whether its sample is held out, (T,), bool.

    Example:
        >>> held_out(torch.ones(3, 2, dtype=torch.bool)).tolist()
        [False, False, False, False, True, True]
    """
    step = min(HELD_OUT, len(tokens))
    samples = torch.arange(1, len(tokens) + 1, device=tokens.device)
    return ((samples % max(step, 1) == 0) & (step > 1)).repeat_interleave(tokens.sum(1))
