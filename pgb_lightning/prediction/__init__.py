"""The rise of the loss that pruning causes after compensation, predicted in closed form."""

from pgb_lightning.prediction.elimination import Elimination, block_errors, eliminate
from pgb_lightning.prediction.quadratic import QuadraticModel

__all__ = [
    "Elimination",
    "QuadraticModel",
    "block_errors",
    "eliminate",
]
