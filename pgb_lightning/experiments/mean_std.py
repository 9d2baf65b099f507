"""Mean and standard deviation over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def format_mean_std(values: Sequence[float], digits: int = 1) -> str:
    """Format the mean of values, followed by the standard deviation if there are several values.

    Example:
        >>> format_mean_std([86.0, 87.0]), format_mean_std([0.0123], digits=3)
        ('86.5 ± 0.7', '0.012')
        >>> format_mean_std([]), format_mean_std([86.0, float("nan")])
        ('-', 'nan ± nan')
    """
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {standard_deviation(values):.{digits}f}" if len(values) > 1 else mean


def standard_deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation: 0 for a single value, NaN if a value is not finite.

    Example:
        >>> standard_deviation([1.0, 3.0, 5.0]), standard_deviation([1.0]), standard_deviation([1.0, float("nan")])
        (2.0, 0.0, nan)
    """
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0
