"""Closed-form prediction of the loss increase that remains after pruning and compensation."""

from pgb_lightning.prediction.elimination import Elimination, block_errors, eliminate
from pgb_lightning.prediction.quadratic import QuadraticModel

__all__ = [
    "Elimination",
    "QuadraticModel",
    "block_errors",
    "eliminate",
]
