"""How results over seeds are written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Write the mean of values, and their standard deviation where there are several.

    Example:
        >>> spread([86.0, 87.0]), spread([0.0123], digits=3), spread([]), spread([86.0, float("nan")])
        ('86.5 ± 0.7', '0.012', '-', 'nan ± nan')
    """
    if not values:
        return "-"
    written = f"{statistics.fmean(values):.{digits}f}"
    return f"{written} ± {deviation(values):.{digits}f}" if len(values) > 1 else written


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of values: 0 of a single one, NaN where one is not finite.

    Example:
        >>> deviation([1.0, 3.0, 5.0]), deviation([1.0]), deviation([1.0, float("nan")])
        (2.0, 0.0, nan)
    """
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0
