"""The second-order model of the loss around a dense matrix, used by the search and by compensated grouping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.config import PruningConfig, ridge_or_default
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import input_of
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.prediction.elimination import add_damping

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class QuadraticModel:
    """A dense matrix with the statistics that determine how the loss depends on it, to second order.

    Args:
        layer: Layer index.
        kind: Matrix kind: one of ``encoder.matrices``.
        weight: W in float64, (M, N).
        fisher: F, the diagonal Fisher information, (M, N).
        covariance: H, the damped covariance of the inputs, (M, M); not centered if the matrix has no bias.
        gradient: A, the second moment of the gradients with respect to the outputs, (N, N), or its diagonal, (N,).
        config: The pruning settings.
        has_bias: Whether the matrix has a bias.
        constant_loss: Predicted increase of the loss if a matrix without a bias is replaced by a bias with the mean of
            its outputs; ``None`` for other matrices.
    """

    layer: int
    kind: str
    weight: Tensor
    fisher: Tensor
    covariance: Tensor
    gradient: Tensor
    config: PruningConfig
    has_bias: bool = True
    constant_loss: float | None = None

    @classmethod
    def from_calibration(
        cls, encoder: Encoder, statistics: Calibration, config: PruningConfig, layer: int, kind: str
    ) -> Self:
        """Create the model of one matrix from calibration statistics.

        Args:
            encoder: The dense encoder.
            statistics: Its calibration statistics, with moments.
            config: The pruning settings; the ridge determines the damping of H.
            layer: Layer index.
            kind: Matrix kind.

        Raises:
            ValueError: If the statistics have no moments.
        """
        if statistics.moments is None:
            if config.search == "shapes":
                setting = 'search="shapes"'
            elif config.permutation == "compensated":
                setting = f"permutation={config.permutation!r}"
            else:
                setting = f"importance_threshold={config.importance_threshold!r}"
            raise ValueError(f"{setting} needs the second moments of the layers. Call calibrate() with moments=True.")
        linear = encoder.matrix(layer, kind)
        assert isinstance(linear.weight, Tensor)
        moments, read = statistics.moments, (layer, input_of(kind))
        covariance, ridge = moments.inputs[read], ridge_or_default(config.ridge)
        weight = linear.weight.detach().T.double()
        gradient, fisher = moments.gradients[layer, kind], statistics.fisher[layer, kind]
        has_bias, constant_loss = as_matrix(linear).bias is not None, None
        if not has_bias:
            if encoder.family.makes_bias(kind):
                spread = weight.T @ add_damping(covariance, ridge) @ weight
                constant_loss = float((gradient * spread).sum() / 2)
            # Means contribute, since no bias can absorb them.
            covariance = covariance + torch.outer(moments.means[read], moments.means[read])
        damped = add_damping(covariance, ridge)
        return cls(layer, kind, weight, fisher, damped, gradient, config, has_bias, constant_loss)

    def output_curvature(self) -> Tensor:
        """Return the diagonal of A, (N,): twice the loss increase per squared error of each output."""
        return self.gradient.diagonal() if self.gradient.dim() == 2 else self.gradient

    def variance_losses(self) -> Tensor:
        """Return the predicted increase of the loss if an output is replaced by its mean, for each output, (N,)."""
        variances = (self.weight * (self.covariance @ self.weight)).sum(0)
        return variances * self.output_curvature() / 2

    def removed_loss(self) -> float:
        """Return the predicted increase of the loss if Q or K is removed and the rest of the sublayer is kept.

        Without biases, removing either of them makes all attention scores zero, so the other has no effect. Both losses
        then estimate the same change, and each is halved so that their sum is the mean estimate.
        """
        return float(self.variance_losses().sum()) / (1 if self.has_bias else 2)

    def dropped_loss(self) -> float:
        """Return the predicted increase of the loss if all outputs are replaced by their means.

        If A is the full matrix, as for closing matrices, correlations between outputs are taken into account.
        """
        if self.constant_loss is not None:
            return self.constant_loss
        if self.gradient.dim() == 1:
            return float(self.variance_losses().sum())
        return float((self.gradient * (self.weight.T @ self.covariance @ self.weight)).sum() / 2)
