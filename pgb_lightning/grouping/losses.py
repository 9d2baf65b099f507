"""Prediction of the loss for given group numbers, for ``importance_threshold="auto"`` (not in the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import EXPENDABLE, SUBLAYERS
from pgb_lightning.grouping.compensated import group_matrices
from pgb_lightning.grouping.group_numbers import GroupNumbers, MatrixKey, keys_of, num_layers
from pgb_lightning.grouping.permutation import group
from pgb_lightning.prediction.elimination import block_loss
from pgb_lightning.prediction.quadratic import QuadraticModel


def predict_losses(
    encoder: Encoder,
    statistics: Calibration,
    config: PruningConfig,
    importances: Mapping[MatrixKey, Tensor],
    choices: Sequence[GroupNumbers],
) -> list[float]:
    """Predict the increase of the loss after compensation, for several choices of group numbers.

    The prediction for each sublayer assumes that the others are dense; that for each matrix assumes that the other
    matrices of its sublayer are dense.

    Args:
        encoder: The encoder.
        statistics: Its calibration statistics, with moments.
        config: The pruning settings.
        importances: I of each matrix, (M, N).
        choices: The group numbers to compare.

    Returns:
        The loss of each choice.

    Raises:
        ValueError: If the statistics have no moments.
    """
    losses: dict[tuple[MatrixKey, int], float] = {}
    for key, importance in importances.items():
        matrix = QuadraticModel.from_calibration(encoder, statistics, config, *key)
        cross, outputs = matrix.covariance @ matrix.weight, matrix.output_curvature()
        for number in sorted({numbers[key] for numbers in choices}):
            if number > 1:
                if config.permutation == "compensated":
                    blocks = group_matrices(encoder, statistics, config, {key: number})[key]
                else:
                    blocks = group(importance, number, config.permutation, config.num_permutations)
                losses[key, number] = block_loss(
                    matrix.covariance, matrix.weight, cross, outputs, blocks.rows, blocks.columns
                )
            elif number == 1:
                losses[key, number] = 0.0
            elif key[1] in EXPENDABLE:
                losses[key, number] = matrix.removed_loss()
            else:
                losses[key, number] = matrix.dropped_loss()
    return [sum(losses[each] for each in _counted(numbers)) for numbers in choices]


def _counted(numbers: GroupNumbers) -> list[tuple[MatrixKey, int]]:
    """Return the matrices whose losses are summed, with group numbers: of a dropped sublayer, only the closing one."""
    counted: list[tuple[MatrixKey, int]] = []
    for layer in range(num_layers(numbers)):
        for sublayer in SUBLAYERS:
            keys = keys_of(numbers, layer, sublayer)
            counted += [(key, numbers[key]) for key in (keys if any(numbers[key] for key in keys) else keys[-1:])]
    return counted
