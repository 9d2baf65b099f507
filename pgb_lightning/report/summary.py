"""The numbers of a report, worked out from plan and facts: what the tables, the page and report.json say."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from pgb_lightning.encoders.base import MATRICES, SUBLAYERS, Sublayer
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.report.facts import STAGES, Facts

#: Raised whenever the meaning of ``report.json`` changes.
REPORT_VERSION = 1


@dataclass(frozen=True)
class Split:
    """One kind of sublayer's part in the cut (the paper's Table 6).

    Args:
        total: Weights of the dense encoder's sublayers of this kind.
        kept: Weights that are left of them.
        points: Percentage points of the whole encoder's cut that they bear.
        share: Their share of the cut; 0 where nothing was cut.
    """

    total: int
    kept: int
    points: float
    share: float

    @property
    def kept_share(self) -> float:
        """Share of these sublayers' weights that is left."""
        return self.kept / self.total


def split_cut(plan: PruningPlan) -> dict[Sublayer, Split]:
    """Tell how much of the cut falls on attention, and how much on the feed-forward networks.

    Each weight costs as many FLOPs as any other, so the split of the weights is that of the matrices' FLOPs too.

    Args:
        plan: The plan.
    """
    removed = plan.total_parameters - plan.kept_parameters
    split: dict[Sublayer, Split] = {}
    for sublayer, kinds in SUBLAYERS.items():
        matrices = [matrix for matrix in plan.matrices if matrix.kind in kinds]
        total, kept = (sum(getattr(m, f"{name}_parameters") for m in matrices) for name in ("total", "kept"))
        points = 100 * (total - kept) / plan.total_parameters
        split[sublayer] = Split(total, kept, points, (total - kept) / removed if removed else 0.0)
    return split


def sublayer_weights(plan: PruningPlan, layer: int, sublayer: Sublayer) -> tuple[int, int]:
    """Return how many weights a sublayer keeps, and how many it had."""
    matrices = [plan.matrix(layer, kind) for kind in SUBLAYERS[sublayer]]
    return sum(m.kept_parameters for m in matrices), sum(m.total_parameters for m in matrices)


def predicted_error(plan: PruningPlan, layer: int, sublayer: Sublayer) -> float | None:
    """Return the rise of the loss that a sublayer's plan predicts, if it does."""
    errors = [plan.matrix(layer, kind).predicted_error for kind in SUBLAYERS[sublayer]]
    known = [error for error in errors if error is not None]
    return sum(known) if len(known) == len(errors) else None


def block_size(matrix: MatrixPlan) -> tuple[int, int]:
    """Return the inputs and outputs of a matrix's blocks; nothing is left of one that is pruned whole."""
    if matrix.input_index is None or matrix.output_index is None:
        return matrix.rows, matrix.columns
    return (len(matrix.input_index[0]), len(matrix.output_index[0])) if matrix.num_groups else (0, 0)


def summarize(plan: PruningPlan, facts: Facts) -> dict[str, Any]:
    """Put all numbers of a report together, as JSON primitives; ``None`` stands for what was not measured."""
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
                "share_of_the_cut": part.share,
            }
            for name, part in split_cut(plan).items()
        },
        "scores": {stage: dict(facts.scores.get(stage, {})) for stage in STAGES},
        "flops": dict(facts.flops),
        "latency": [
            {
                **{"batch_size": each.batch_size, "length": each.length, "device": each.device},
                **{f"{name}_seconds": _median(getattr(each, name)) for name in ("dense", "pruned")},
                "rounds": {"dense": list(each.dense), "pruned": list(each.pruned)},
                "speedup": statistics.median(each.dense) / statistics.median(each.pruned),
            }
            for each in facts.latency
        ],
        "sublayers": [
            _sublayer(plan, facts, layer, sublayer) for layer in range(plan.num_layers) for sublayer in SUBLAYERS
        ],
        "matrices": [_matrix(plan.matrix(layer, kind), facts) for layer in range(plan.num_layers) for kind in MATRICES],
        "settings": dict(plan.config),
    }


def _sublayer(plan: PruningPlan, facts: Facts, layer: int, sublayer: Sublayer) -> dict[str, Any]:
    kept, total = sublayer_weights(plan, layer, sublayer)
    return {
        **{"layer": layer, "sublayer": sublayer, "total_parameters": total, "kept_parameters": kept},
        "kept_share": kept / total,
        "predicted_error": predicted_error(plan, layer, sublayer),
        "measured_error": facts.sublayer_errors.get(f"{layer}.{sublayer}"),
    }


def _matrix(matrix: MatrixPlan, facts: Facts) -> dict[str, Any]:
    return {
        **{"layer": matrix.layer, "kind": matrix.kind, "inputs": matrix.rows, "outputs": matrix.columns},
        "num_groups": matrix.num_groups,
        "block": list(block_size(matrix)),
        "kept_parameters": matrix.kept_parameters,
        "kept_share": matrix.kept_share,
        "importance_kept": matrix.importance_kept,
        "predicted_error": matrix.predicted_error,
        "measured_error": facts.matrix_errors.get(f"{matrix.layer}.{matrix.kind}"),
    }


def _median(seconds: tuple[float, ...]) -> float:
    return statistics.median(seconds)
