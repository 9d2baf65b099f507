"""Weight compensation by least squares (Section 3.3, Eq. 4)."""

from pgb_lightning.compensation.errors import FitErrors
from pgb_lightning.compensation.fit import compensate
from pgb_lightning.compensation.least_squares import LeastSquares
from pgb_lightning.compensation.ridge import choose_ridge

__all__ = [
    "FitErrors",
    "LeastSquares",
    "choose_ridge",
    "compensate",
]
