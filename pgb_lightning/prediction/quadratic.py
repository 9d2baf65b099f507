"""A dense matrix and the loss's quadratic model around it: what the search and the groups are decided by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.config import PruningConfig, ridge_or_default
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.prediction.elimination import add_damping

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class QuadraticModel:
    """A dense matrix and what calibration knows of it.

    Args:
        layer: Number of its layer.
        kind: Which of the six matrices.
        weight: W, (M, N), in float64.
        fisher: F, (M, N).
        covariance: H of its inputs, damped, (M, M).
        gradient: A, the gradients' second moment at its outputs, (N, N), or its diagonal, (N,).
        config: The settings.
    """

    layer: int
    kind: str
    weight: Tensor
    fisher: Tensor
    covariance: Tensor
    gradient: Tensor
    config: PruningConfig

    @classmethod
    def from_calibration(
        cls, encoder: Encoder, statistics: Calibration, config: PruningConfig, layer: int, kind: str
    ) -> Self:
        """Look a matrix up.

        Raises:
            ValueError: The statistics lack moments.
        """
        if statistics.moments is None:
            setting = 'search="shapes"' if config.search == "shapes" else f"permutation={config.permutation!r}"
            raise ValueError(f"{setting} needs the second moments of the layers: calibrate with moments=True.")
        linear = encoder.matrix(layer, kind)
        assert isinstance(linear.weight, Tensor)
        covariance = statistics.moments.inputs[layer, "Q" if kind in ("K", "V") else kind]
        weight = linear.weight.detach().T.double()
        gradient, fisher = statistics.moments.gradients[layer, kind], statistics.fisher[layer, kind]
        damped = add_damping(covariance, ridge_or_default(config.ridge))
        return cls(layer, kind, weight, fisher, damped, gradient, config)

    def output_curvature(self) -> Tensor:
        """Return the diagonal of A, (N,): what a squared error in each output costs, twice."""
        return self.gradient.diagonal() if self.gradient.dim() == 2 else self.gradient
