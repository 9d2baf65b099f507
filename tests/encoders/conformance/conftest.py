"""What several tests of a family need: its calibration, and models that a preset has pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers.families import tiny_batches, tiny_model

from pgb_lightning import PruningConfig, PruningPlan
from pgb_lightning.calibration import Calibration, calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import carry_out, make_plan, prepare
from pgb_lightning.search.candidates import Candidate, list_candidates


@dataclass
class Calibrated:
    """A dense model with its calibration and candidates, on which any number of plans can be made.

    Args:
        model: The dense model.
        statistics: Its calibration.
        candidates: The candidates of the default preset.
        plans: The plans made so far, by preset and ratio.
    """

    model: Any
    statistics: Calibration
    candidates: list[list[Candidate]]
    plans: dict[tuple[str, float], PruningPlan] = field(default_factory=dict)

    def pruned(self, preset: str = "default", ratio: float = 0.5) -> tuple[Any, PruningPlan]:
        """Return a copy of the model that is pruned as :func:`pgb_lightning.prune` does it, and its plan."""
        model = copy.deepcopy(self.model)
        config = PruningConfig.from_preset(preset, pruning_ratio=ratio)
        encoder = prepare(model, config)
        if (preset, ratio) not in self.plans:
            given = self.candidates if config.search == "shapes" else None
            self.plans[preset, ratio] = make_plan(encoder, self.statistics, config, given)
        plan = self.plans[preset, ratio]
        carry_out(encoder, plan, self.statistics, config)
        return model, plan


@pytest.fixture(scope="session")
def calibrated() -> Callable[[str], Calibrated]:
    """Return a function that calibrates the tiny model of a family, once per session."""
    found: dict[str, Calibrated] = {}

    def make(model_type: str) -> Calibrated:
        if model_type not in found:
            model = tiny_model(model_type)
            encoder = find_encoder(model)
            statistics = calibrate(encoder, tiny_batches(5), model_loss(model), moments=True)
            found[model_type] = Calibrated(model, statistics, list_candidates(encoder, statistics, PruningConfig()))
        return found[model_type]

    return make
