"""Values recorded during pruning for the report, because they cannot be computed afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pgb_lightning.calibration.importance import second_order_importance
from pgb_lightning.compensation.errors import FitErrors
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.maps import ImportanceMap, importance_map


@dataclass
class PruningNotes:
    """Values recorded while an encoder is pruned.

    Args:
        errors: Errors of the outputs against those of the dense model. Empty without compensation.
        maps: Importance of each matrix in block order, by (layer, kind). Empty without calibration.
    """

    errors: FitErrors = field(default_factory=FitErrors)
    maps: dict[tuple[int, str], ImportanceMap] = field(default_factory=dict)

    def record_importance(self, encoder: Encoder, plan: PruningPlan, fisher: Mapping[tuple[int, str], Tensor]) -> None:
        """Record the importance maps of all matrices. Call it before the plan is applied.

        Args:
            encoder: The dense encoder.
            plan: The plan to be applied.
            fisher: The Fisher information F of each matrix, by (layer, kind).
        """
        for key, linear in encoder.linears():
            importance = second_order_importance(linear.weight.T, fisher[key])
            self.maps[key] = importance_map(importance, plan.matrix(*key))
