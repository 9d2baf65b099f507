"""How far a pruned encoder's outputs are from the dense one's, measured while compensation refits it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgb_lightning.calibration.moments import AllReduce
from pgb_lightning.encoders.base import Sublayer


@dataclass
class FitErrors:
    """Relative squared errors on the calibration tokens, after compensation; written as it goes.

    An error is the sum of squared differences over the sum of squared deviations from the mean: 0 is equal to the
    dense model, 1 as good as a constant.

    Args:
        matrices: Of each matrix's outputs, given what the pruned model feeds it, by (layer, kind). Outputs that nothing
            reads any more do not count.
        sublayers: Of the hidden states behind each sublayer, residual and LayerNorm included, by (layer, sublayer):
            what all losses so far add up to.
    """

    matrices: dict[tuple[int, str], float] = field(default_factory=dict)
    sublayers: dict[tuple[int, Sublayer], float] = field(default_factory=dict)

    def add_matrix(self, key: tuple[int, str], total: float, explained: float) -> None:
        """Note a matrix's error.

        Args:
            key: Layer and kind.
            total: Squared deviations of the dense outputs from their mean, summed up.
            explained: How much of that is not left as error.
        """
        # Rounding may leave less than nothing.
        self.matrices[key] = max(1 - explained / total, 0.0) if total > 0 else 0.0


def relative_error(
    pairs: Iterable[tuple[Tensor, Tensor]], width: int, device: torch.device, reduce: AllReduce
) -> float:
    """Compare vectors with what they should be, over all processes.

    Args:
        pairs: Vectors as they are and as they should be, (T, d) each, batch by batch.
        width: d, known also to a process that has no batch.
        device: Where sums over processes are taken.
        reduce: Sums a tensor over the processes.

    Returns:
        The sum of squared differences over that of squared deviations from the mean.

    Example:
        >>> should = torch.tensor([[0.0], [2.0]])
        >>> relative_error([(torch.ones(2, 1), should)], 1, torch.device("cpu"), lambda tensor: tensor)
        1.0
    """
    sums = torch.zeros(width + 3, dtype=torch.float64)
    for found, should in pairs:
        sums[:width] += should.sum(0, dtype=torch.float64)
        sums[width] += should.square().sum(dtype=torch.float64)
        sums[width + 1] += (found - should).square().sum(dtype=torch.float64)
        sums[width + 2] += len(should)
    sums = reduce(sums.to(device)).cpu()
    power, difference, count = sums[width:].tolist()
    deviation = power - float(sums[:width].square().sum()) / max(count, 1)
    return difference / deviation if deviation > 0 else 0.0
