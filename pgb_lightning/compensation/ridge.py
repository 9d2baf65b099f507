"""The choice of the ridge λ in Eq. 4 by the error on held-out calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pgb_lightning.calibration.moments import AllReduce, Moments
from pgb_lightning.compensation.least_squares import LeastSquares
from pgb_lightning.config import Ridge, ridge_or_default

#: The ridges from which "auto" chooses.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

#: One in this many samples of a batch is held out.
HELD_OUT = 5


class SplitMoments:
    """Moments of a matrix's inputs and targets, with separate moments for held-out samples.

    Args:
        rows: Indices of the inputs of each block, (G, m).
        columns: Indices of the targets of each block, (G, n).
        num_inputs: M.
        num_targets: N.
        split: Whether samples are held out; must be equal on all processes.

    Attributes:
        fitted: Moments of the samples that are not held out.
        held: Moments of the held-out samples, or ``None``.
        all: Moments of all samples; valid after :meth:`finish`.
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
            held: True for tokens of held-out samples, (T,); ``None`` if no sample is held out.
        """
        if held is None or self.held is None:
            self.fitted.add(x, y)
        else:
            self.fitted.add(x[~held], y[~held])
            self.held.add(x[held], y[held])

    def finish(self, all_reduce: AllReduce) -> None:
        """Sum over processes and subtract the means. Call once."""
        self.fitted.finish(all_reduce)
        if self.held is not None:
            self.held.finish(all_reduce)
            self.all = self.fitted.merged(self.held) if self.held.count else self.fitted


def choose_ridge(
    ridge: Ridge, moments: SplitMoments, problem: Callable[[Moments], LeastSquares], start: Tensor
) -> float:
    """Choose the ridge whose weights, fitted without the held-out samples, have the smallest error on those samples.

    The error is assumed to have a single minimum over the ridges, so not all of them are tried.

    Args:
        ridge: The setting. A number is returned as is.
        moments: Moments of the matrix's inputs and targets.
        problem: Builds the least-squares problem of Eq. 4 from moments.
        start: W, the weights before compensation, (G, m, n).

    Returns:
        The ridge; :data:`~pgb_lightning.config.DEFAULT_RIDGE` for ``"auto"`` if all samples or none are held out.
    """
    if ridge != "auto" or moments.held is None or not moments.held.count or not moments.fitted.count:
        return ridge_or_default(ridge)
    fitted, held = problem(moments.fitted), problem(moments.held)
    return largest_of_one_peak(RIDGES, lambda choice: held.explained(fitted.solve(start, choice)))


def largest_of_one_peak(choices: Sequence[float], value: Callable[[float], float]) -> float:
    """Return the choice with the largest value, if values rise up to one choice and fall after it.

    The search starts in the middle and goes in one direction, and in the other if that does not increase the value. It
    stops as soon as the value does not increase.

    Args:
        choices: The choices, in order.
        value: Returns the value of a choice.

    Example:
        >>> largest_of_one_peak((1, 2, 3, 4, 5), lambda choice: -abs(choice - 4))
        4
    """
    middle = len(choices) // 2
    best, highest = choices[middle], value(choices[middle])
    for side in (choices[middle - 1 :: -1], choices[middle + 1 :]):
        start = best
        for choice in side:
            found = value(choice)
            if found <= highest:
                break
            best, highest = choice, found
        if best != start:
            break
    return best


def held_out_samples(tokens: Tensor) -> Tensor:
    """Return which samples of a batch are held out, (B,).

    Every fifth sample of a batch is held out. From a smaller batch, the last sample is held out, unless it is the only
    one. This depends only on positions in the batch, so the result does not depend on the number of processes.

    Args:
        tokens: True at real tokens, False at padding, (B, S).

    Example:
        >>> held_out_samples(torch.ones(3, 2, dtype=torch.bool)).tolist()
        [False, False, True]
    """
    step = min(HELD_OUT, len(tokens))
    samples = torch.arange(1, len(tokens) + 1, device=tokens.device)
    return (samples % max(step, 1) == 0) & (step > 1)


def held_out_mask(tokens: Tensor) -> Tensor:
    """Return for each real token of a batch, in order, whether its sample is held out, (T,).

    Args:
        tokens: True at real tokens, False at padding, (B, S).

    Example:
        >>> held_out_mask(torch.ones(3, 2, dtype=torch.bool)).tolist()
        [False, False, False, False, True, True]
    """
    return held_out_samples(tokens).repeat_interleave(tokens.sum(1))
