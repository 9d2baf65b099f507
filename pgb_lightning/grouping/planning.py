"""The paper's method: group numbers by Algorithm 1, groups by Algorithm 2."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.calibration.importance import encoder_importances
from pgb_lightning.calibration.signal import check_usable
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import dense_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.fingerprint import fingerprint
from pgb_lightning.grouping.compensated import group_matrices
from pgb_lightning.grouping.group_numbers import GroupNumbers, ImportanceSummary, MatrixKey
from pgb_lightning.grouping.losses import predict_losses
from pgb_lightning.grouping.permutation import Blocks, group
from pgb_lightning.grouping.threshold import choose_group_numbers, numbers_by_threshold
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.surgery.checks import dense_sizes, is_pruned
from pgb_lightning.target_warning import warn_if_missed


def plan_by_groups(encoder: Encoder, statistics: Calibration, config: PruningConfig) -> PruningPlan:
    """Choose the group number of every matrix, then its groups, without changing the encoder.

    Args:
        encoder: An encoder, dense or with fewer heads or neurons.
        statistics: Its calibration.
        config: The target and the paper's hyperparameters.

    Returns:
        The plan. A warning is issued if it misses the target by more than one percentage point.

    Raises:
        ValueError: If all importances are zero or one is not finite, or a given τ would remove too much.
    """
    importances, summaries = _summarize(encoder, statistics, config)
    predict = partial(predict_losses, encoder, statistics, config, importances)
    numbers, threshold = choose_group_numbers(summaries, config, dense_cost(encoder).parameters, predict)
    plan = _plan(encoder, statistics, config, importances, numbers, threshold)
    warn_if_missed(plan.pruning_ratio, config)
    return plan


def plan_at_rank(encoder: Encoder, statistics: Calibration, config: PruningConfig, rank: float) -> PruningPlan:
    """Plan with one of the τ that meet the target, to study the sensitivity to τ (Fig. 7).

    Args:
        encoder: An encoder, dense or with fewer heads or neurons.
        statistics: Its calibration.
        config: The target and the paper's hyperparameters; ``importance_threshold`` is not used.
        rank: Rank of the τ among those that meet the target, as a fraction: 0 for the smallest, 1 for the largest.
    """
    importances, summaries = _summarize(encoder, statistics, config)
    candidates = numbers_by_threshold(summaries, config, dense_cost(encoder).parameters)
    threshold, numbers = candidates[round(rank * (len(candidates) - 1))]
    return _plan(encoder, statistics, config, importances, numbers, threshold)


def _summarize(
    encoder: Encoder, statistics: Calibration, config: PruningConfig
) -> tuple[dict[MatrixKey, Tensor], dict[MatrixKey, ImportanceSummary]]:
    """Return the importances of every matrix, and their summaries for Algorithm 1."""
    importances = encoder_importances(encoder, statistics.fisher)
    check_usable("importances of the weights", importances.values())
    summaries = {key: ImportanceSummary.from_importance(each, config.max_groups) for key, each in importances.items()}
    return importances, summaries


def _plan(
    encoder: Encoder,
    statistics: Calibration,
    config: PruningConfig,
    importances: Mapping[MatrixKey, Tensor],
    numbers: GroupNumbers,
    threshold: float,
) -> PruningPlan:
    """Return the plan for given group numbers."""
    given = group_matrices(encoder, statistics, config, numbers) if config.permutation == "compensated" else {}
    return PruningPlan(
        model_type=encoder.model_type,
        matrices=tuple(
            plan_matrix(key, importance, numbers[key], config, given.get(key))
            for key, importance in importances.items()
        ),
        config={**config.to_dict(), "importance_threshold_used": threshold},
        num_samples=statistics.num_samples,
        fingerprint=fingerprint(encoder),
        dense_sizes=dense_sizes(encoder) if is_pruned(encoder) else None,
    )


def plan_matrix(
    key: MatrixKey, importance: Tensor, num_groups: int, config: PruningConfig, blocks: Blocks | None = None
) -> MatrixPlan:
    """Return the plan of one matrix.

    Args:
        key: Layer index and matrix kind.
        importance: I, (M, N).
        num_groups: G; 0 removes the matrix, 1 keeps it dense.
        config: The permutation (Algorithm 2) and its hyperparameters.
        blocks: The groups, if they are known already.
    """
    layer, kind = key
    rows, columns = importance.shape
    exact = importance.double()
    total = float(exact.sum())
    if num_groups == 0:
        return MatrixPlan(layer, kind, rows, columns, (), (), importance_kept=0.0, predicted_error=total / 2)
    if num_groups == 1:
        return MatrixPlan(layer, kind, rows, columns, None, None, importance_kept=1.0, predicted_error=0.0)
    blocks = blocks or group(importance, num_groups, config.permutation, config.num_permutations)
    kept = float(blocks.kept_importance(exact).sum())
    return MatrixPlan(
        layer,
        kind,
        rows,
        columns,
        input_index=tuple(map(tuple, blocks.rows.tolist())),
        output_index=tuple(map(tuple, blocks.columns.tolist())),
        importance_kept=kept / max(total, 1e-300),
        predicted_error=(total - kept) / 2,
    )
