"""Compute the numbers of a report from its plan and facts, for the tables, the page and ``report.json``."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from pgb_lightning.encoders.family import SUBLAYERS, Sublayer
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.report.facts import STAGES, Facts

#: Incremented whenever the format of ``report.json`` changes.
REPORT_VERSION = 1


@dataclass(frozen=True)
class Split:
    """The weights removed from one kind of sublayer (the paper's Table 6).

    Args:
        total: Weights of these sublayers in the dense encoder.
        kept: Weights kept in them.
        points: Weights removed from them, in percent of all weights of the encoder.
        fraction: Weights removed from them, as a fraction of all removed weights; 0 if none were removed.
    """

    total: int
    kept: int
    points: float
    fraction: float

    @property
    def kept_share(self) -> float:
        """Fraction of the weights of these sublayers that is kept."""
        return self.kept / self.total


def split_removed(plan: PruningPlan) -> dict[Sublayer, Split]:
    """Return how the removed weights split between attention and feed-forward sublayers.

    Every weight costs the same number of FLOPs, so the FLOPs of the matrices split the same way.

    Args:
        plan: The plan.
    """
    removed = plan.total_parameters - plan.kept_parameters
    split: dict[Sublayer, Split] = {}
    for sublayer, kinds in plan.sublayers.items():
        matrices = [matrix for matrix in plan.matrices if matrix.kind in kinds]
        total = sum(map(plan.dense_parameters, matrices))
        kept = sum(matrix.kept_parameters for matrix in matrices)
        points = 100 * (total - kept) / plan.total_parameters
        split[sublayer] = Split(total, kept, points, (total - kept) / removed if removed else 0.0)
    return split


def sublayer_weights(plan: PruningPlan, layer: int, sublayer: Sublayer) -> tuple[int, int]:
    """Return the number of kept weights of a sublayer, and the number of its weights in the dense encoder."""
    matrices = [plan.matrix(layer, kind) for kind in plan.sublayers[sublayer]]
    return sum(m.kept_parameters for m in matrices), sum(map(plan.dense_parameters, matrices))


def predicted_error(plan: PruningPlan, layer: int, sublayer: Sublayer) -> float | None:
    """Return the predicted increase of the loss due to a sublayer, or ``None`` if the plan has no prediction."""
    errors = [plan.matrix(layer, kind).predicted_error for kind in plan.sublayers[sublayer]]
    known = [error for error in errors if error is not None]
    return sum(known) if len(known) == len(errors) else None


def block_size(matrix: MatrixPlan) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a matrix's blocks, (0, 0) if the matrix is removed."""
    if matrix.input_index is None or matrix.output_index is None:
        return matrix.rows, matrix.columns
    return (len(matrix.input_index[0]), len(matrix.output_index[0])) if matrix.num_groups else (0, 0)


def summarize(plan: PruningPlan, facts: Facts) -> dict[str, Any]:
    """Return all numbers of a report as JSON primitives, with ``None`` for what was not measured."""
    return {
        "version": REPORT_VERSION,
        "name": facts.name,
        "pruning_ratio": plan.pruning_ratio,
        "total_parameters": plan.total_parameters,
        "kept_parameters": plan.kept_parameters,
        "num_samples": plan.num_samples,
        "split": {
            name: {
                "total": part.total,
                "kept": part.kept,
                "kept_share": part.kept_share,
                "points_of_the_cut": part.points,
                "share_of_the_cut": part.fraction,
            }
            for name, part in split_removed(plan).items()
        },
        "scores": {stage: dict(facts.scores.get(stage, {})) for stage in STAGES},
        "flops": dict(facts.flops),
        "latency": [
            {
                "batch_size": each.batch_size,
                "length": each.length,
                "device": each.device,
                "dense_seconds": statistics.median(each.dense),
                "pruned_seconds": statistics.median(each.pruned),
                "rounds": {"dense": list(each.dense), "pruned": list(each.pruned)},
                "speedup": statistics.median(each.dense) / statistics.median(each.pruned),
            }
            for each in facts.latency
        ],
        "sublayers": [
            _sublayer(plan, facts, layer, sublayer) for layer in range(plan.num_layers) for sublayer in SUBLAYERS
        ],
        "matrices": [
            _matrix(plan, plan.matrix(layer, kind), facts) for layer in range(plan.num_layers) for kind in plan.kinds
        ],
        "settings": dict(plan.config),
    }


def _sublayer(plan: PruningPlan, facts: Facts, layer: int, sublayer: Sublayer) -> dict[str, Any]:
    kept, total = sublayer_weights(plan, layer, sublayer)
    return {
        "layer": layer,
        "sublayer": sublayer,
        "total_parameters": total,
        "kept_parameters": kept,
        "kept_share": kept / total,
        "predicted_error": predicted_error(plan, layer, sublayer),
        "measured_error": facts.sublayer_errors.get(f"{layer}.{sublayer}"),
    }


def _matrix(plan: PruningPlan, matrix: MatrixPlan, facts: Facts) -> dict[str, Any]:
    return {
        "layer": matrix.layer,
        "kind": matrix.kind,
        "inputs": matrix.rows,
        "outputs": matrix.columns,
        "num_groups": matrix.num_groups,
        "block": list(block_size(matrix)),
        "kept_parameters": matrix.kept_parameters,
        "kept_share": plan.kept_share(matrix),
        "importance_kept": matrix.importance_kept,
        "predicted_error": matrix.predicted_error,
        "measured_error": facts.matrix_errors.get(f"{matrix.layer}.{matrix.kind}"),
    }
