"""The search for the block shapes with the least predicted loss within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.calibration.importance import encoder_importances
from pgb_lightning.calibration.signal import check_usable
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.fingerprint import fingerprint
from pgb_lightning.grouping.permutation import Blocks
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.search.candidates import Candidate, CandidateCost, list_candidates
from pgb_lightning.search.costs import candidate_cost, dense_total
from pgb_lightning.search.knapsack import solve_knapsack
from pgb_lightning.search.speedup import meet_speedup
from pgb_lightning.surgery.checks import dense_sizes, is_pruned
from pgb_lightning.target_warning import warn_if_missed


def plan_by_shapes(
    encoder: Encoder,
    statistics: Calibration,
    config: PruningConfig,
    candidates: Sequence[Sequence[Candidate]] | None = None,
    cost: CandidateCost | None = None,
) -> PruningPlan:
    """Choose a shape for every sublayer, without changing the encoder.

    Args:
        encoder: An encoder, dense or with fewer heads, neurons or sublayers.
        statistics: Its calibration, with moments.
        config: The settings, including the target.
        candidates: The result of :func:`~pgb_lightning.search.candidates.list_candidates`; computed if omitted.
        cost: The cost of a candidate; determined by ``config.budget`` if omitted.

    Returns:
        The plan. A warning is issued if it misses the target by more than one percentage point (three for
        ``budget="latency"``).

    Raises:
        ValueError: If the predicted losses of all shapes are zero, or one is not finite.
    """
    options = candidates or list_candidates(encoder, statistics, config)
    predicted = [candidate.loss for candidate in chain.from_iterable(options)]
    check_usable("predicted losses of the shapes", [torch.tensor(predicted, dtype=torch.float64, device="cpu")])
    cost_of = cost or candidate_cost(encoder, options, config)
    further = is_pruned(encoder)
    dense_cost = dense_total(encoder, config) if further else sum(cost_of(sublayer[0]) for sublayer in options)
    importances = encoder_importances(encoder, statistics.fisher)
    identity = fingerprint(encoder)

    def plan_at(ratio: float) -> tuple[PruningPlan, float]:
        chosen = choose_shapes(options, ratio, config.tolerance, cost_of, dense_cost)
        matrices = tuple(
            replace(matrix, importance_kept=_importance_kept(matrix, importances.get((matrix.layer, matrix.kind))))
            for candidate in chosen
            for matrix in candidate.matrices
        )
        settings = {**config.to_dict(), "shapes": [str(candidate.shape) for candidate in chosen]}
        sizes = dense_sizes(encoder) if further else None
        plan = PruningPlan(encoder.model_type, matrices, settings, statistics.num_samples, identity, dense_sizes=sizes)
        return plan, 1 - sum(map(cost_of, chosen)) / dense_cost

    plan, removed = plan_at(config.cut) if config.budget != "latency" else meet_speedup(encoder, config, plan_at)
    warn_if_missed(removed, config)
    return plan


def choose_shapes(
    candidates: Sequence[Sequence[Candidate]],
    ratio: float,
    tolerance: float,
    cost: CandidateCost,
    total: float | None = None,
) -> list[Candidate]:
    """Choose one candidate for each sublayer such that the predicted loss is minimal within the budget.

    Args:
        candidates: The candidates of each sublayer, the dense one first. Those that cost more than it are not chosen.
        ratio: The fraction of the dense cost to remove.
        tolerance: How much more than ``ratio`` may be removed, as a fraction of the dense cost. This limit is strict.
        cost: The cost of a candidate.
        total: The dense cost; by default that of the first candidates.
    """
    first = [cost(options[0]) for options in candidates]
    cheaper = [[one for one in part if cost(one) <= limit] for part, limit in zip(candidates, first, strict=True)]
    costs = [[cost(candidate) for candidate in options] for options in cheaper]
    losses = [[candidate.loss for candidate in options] for options in cheaper]
    total = sum(first) if total is None else total
    positions = solve_knapsack(losses, costs, (1 - ratio) * total, tolerance * total)
    return [options[position] for options, position in zip(cheaper, positions, strict=True)]


def _importance_kept(matrix: MatrixPlan, importance: Tensor | None) -> float:
    """Return the fraction of a matrix's importance that lies in its blocks; 0 if it has no weights before pruning."""
    if matrix.input_index is None or matrix.output_index is None:
        return 1.0
    if not matrix.num_groups or importance is None:
        return 0.0
    exact = importance.double().cpu()
    rows, columns = (torch.tensor(each, device="cpu") for each in (matrix.input_index, matrix.output_index))
    blocks = Blocks(rows, columns)
    return min(float(blocks.kept_importance(exact).sum()) / max(float(exact.sum()), 1e-300), 1.0)
