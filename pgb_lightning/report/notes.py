"""What a report wants to know of a pruning, noted while it happens: afterwards it is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pgb_lightning.calibration.importance import second_order_importance
from pgb_lightning.compensation.errors import FitErrors
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.maps import Map, importance_map


@dataclass
class PruningNotes:
    """What is noted while an encoder is pruned.

    Args:
        errors: How far outputs are from the dense ones; empty without compensation.
        maps: The importance of each matrix in the order of its blocks, by (layer, kind); empty without calibration.
    """

    errors: FitErrors = field(default_factory=FitErrors)
    maps: dict[tuple[int, str], Map] = field(default_factory=dict)

    def note_importance(self, encoder: Encoder, plan: PruningPlan, fisher: Mapping[tuple[int, str], Tensor]) -> None:
        """Note the maps of all matrices, before the plan is carried out.

        Args:
            encoder: The dense encoder.
            plan: What is going to become of it.
            fisher: F of each matrix.
        """
        for key, linear in encoder.linears():
            importance = second_order_importance(linear.weight.T, fisher[key])
            self.maps[key] = importance_map(importance, plan.matrix(*key))
