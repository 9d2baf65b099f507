"""The hard concrete distribution, whose samples lie in [0, 1] and are often exactly 0 or 1.

Louizos, Welling, Kingma: *Learning Sparse Neural Networks through L0 Regularization*, ICLR 2018. A logistic variable is
squashed to (0, 1), stretched to (-0.1, 1.1) and clipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: β, the temperature: the paper's and CoFi's value.
TEMPERATURE = 2 / 3
#: γ and ζ, the ends of the stretched interval: likewise.
LOW, HIGH = -0.1, 1.1
#: Factor of the location in :func:`typical`, in CoFi's implementation.
SHARPNESS = 0.8


def sample(location: Tensor) -> Tensor:
    """Draw one sample for each location log α, in [0, 1], with gradients to the location."""
    noise = torch.rand_like(location).clamp(1e-6, 1 - 1e-6)
    squashed = torch.sigmoid((noise.logit() + location) / TEMPERATURE)
    return (squashed * (HIGH - LOW) + LOW).clamp(0, 1)


def probability_open(location: Tensor) -> Tensor:
    """Return the probability that a sample is not 0, of which the expected size of a network is made.

    Example:
        >>> probability_open(torch.tensor([-9.0, 0.0, 9.0])).round(decimals=2).tolist()
        [0.0, 0.8299999833106995, 1.0]
    """
    return torch.sigmoid(location - TEMPERATURE * math.log(-LOW / HIGH))


def typical(location: Tensor) -> Tensor:
    """Return the value of an open mask without noise, in (0, 1)."""
    return torch.sigmoid(location / TEMPERATURE * SHARPNESS)
