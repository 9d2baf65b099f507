"""Errors of a pruned encoder's outputs relative to the dense encoder's, measured during compensation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgb_lightning.calibration.moments import AllReduce
from pgb_lightning.encoders.family import Sublayer


@dataclass
class FitErrors:
    """Relative squared errors on the calibration tokens after compensation, recorded layer by layer.

    An error is the sum of squared differences from the dense model divided by the sum of squared deviations of the
    dense model's values from their mean: 0 means equal to the dense model, 1 means no better than a constant.

    Args:
        matrices: Error of each matrix's outputs, given its inputs in the pruned model, by (layer index, matrix
            kind). Outputs that the pruned model does not use are excluded.
        sublayers: Error of the hidden states after each sublayer, including residual and LayerNorm, by (layer index,
            sublayer). It includes the errors of all earlier sublayers.
    """

    matrices: dict[tuple[int, str], float] = field(default_factory=dict)
    sublayers: dict[tuple[int, Sublayer], float] = field(default_factory=dict)

    def add_matrix(self, key: tuple[int, str], total: float, explained: float) -> None:
        """Record the error of a matrix.

        Args:
            key: Layer index and matrix kind.
            total: Total sum of squares: squared deviations of the dense outputs from their mean.
            explained: Explained sum of squares: ``total`` minus the squared error.
        """
        # Rounding can make the error slightly negative.
        self.matrices[key] = max(1 - explained / total, 0.0) if total > 0 else 0.0


def relative_error(
    pairs: Iterable[tuple[Tensor, Tensor]], width: int, device: torch.device, reduce: AllReduce
) -> float:
    """Compute the relative squared error of vectors over all batches and processes.

    Args:
        pairs: Actual and expected vectors of each batch, (T, d) each.
        width: d; needed on a process without batches.
        device: Device for the sum over processes.
        reduce: Sums a tensor over the processes.

    Returns:
        The sum of squared differences divided by the sum of squared deviations of the expected vectors from their mean;
        0 if the expected vectors are all equal.

    Example:
        >>> expected = torch.tensor([[0.0], [2.0]])
        >>> relative_error([(torch.ones(2, 1), expected)], 1, torch.device("cpu"), lambda tensor: tensor)
        1.0
    """
    sums = torch.zeros(width + 3, dtype=torch.float64, device="cpu")
    for actual, expected in pairs:
        sums[:width] += expected.sum(0, dtype=torch.float64)
        sums[width] += expected.square().sum(dtype=torch.float64)
        sums[width + 1] += (actual - expected).square().sum(dtype=torch.float64)
        sums[width + 2] += len(expected)
    sums = reduce(sums.to(device)).cpu()
    power, difference, count = sums[width:].tolist()
    deviation = power - float(sums[:width].square().sum()) / max(count, 1)
    return difference / deviation if deviation > 0 else 0.0
