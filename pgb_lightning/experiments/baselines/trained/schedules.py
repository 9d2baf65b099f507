"""Schedules of the removed fraction during a fit."""

from __future__ import annotations


def linear(progress: float, begin: float, end: float) -> float:
    """Return the progress of a linear schedule: 0 until ``begin``, 1 from ``end``.

    Args:
        progress: Fraction of the fit that is over.
        begin: Fraction of the fit at which the schedule begins.
        end: Fraction of the fit at which it is complete.

    Example:
        >>> [linear(progress, 0.25, 0.75) for progress in (0.125, 0.5, 1.0)]
        [0.0, 0.5, 1.0]
    """
    if progress >= end:
        return 1.0
    return max(progress - begin, 0.0) / (end - begin)


def cubic(progress: float, begin: float, end: float) -> float:
    """Return the progress of a cubic schedule, which removes much at first, and less and less later.

    After Zhu and Gupta: *To Prune, or Not to Prune*, ICLR 2018 workshop.

    Args:
        progress: Fraction of the fit that is over.
        begin: Fraction of the fit at which the schedule begins.
        end: Fraction of the fit at which it is complete.

    Example:
        >>> [cubic(progress, 0.25, 0.75) for progress in (0.125, 0.5, 1.0)]
        [0.0, 0.875, 1.0]
    """
    return 1 - (1 - linear(progress, begin, end)) ** 3
