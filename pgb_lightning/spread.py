"""How results over seeds are written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Write the mean of values, and their standard deviation where there are several.

    Example:
        >>> spread([86.0, 87.0]), spread([0.0123], digits=3), spread([])
        ('86.5 ± 0.7', '0.012', '-')
    """
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"
