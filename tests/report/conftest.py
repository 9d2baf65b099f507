"""Fixtures: a pruned model with all measurements of a report."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers.tiny import batches, classifier

from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import carry_out, make_plan
from pgb_lightning.report import Facts, Latency, PruningNotes
from pgb_lightning.report.layer_latency import count_flops

PlanAndFacts = tuple[PruningPlan, Facts]

LATENCY = Latency(8, 128, "CPU, 1 thread", dense=(0.1, 0.11, 0.13), pruned=(0.05, 0.055, 0.06))


@pytest.fixture(scope="session")
def plan_and_facts() -> Callable[..., PlanAndFacts]:
    """Return a function that prunes a tiny model, once per session and preset, and returns its plan and facts."""
    known: dict[tuple[str, float], PlanAndFacts] = {}

    def make(preset: str = "paper", ratio: float = 0.35) -> PlanAndFacts:
        if (preset, ratio) not in known:
            model = classifier(layers=2)
            encoder, notes = find_encoder(model), PruningNotes()
            config = PruningConfig.from_preset(preset, pruning_ratio=ratio)
            needed = config.needs_moments
            statistics = calibrate(encoder, batches(4), lambda batch: model(**batch).loss, moments=needed)
            plan = make_plan(encoder, statistics, config)
            notes.record_importance(encoder, plan, statistics.fisher)
            carry_out(encoder, plan, statistics, config, errors=notes.errors)
            scores = {"dense": {"val_accuracy": 0.9125, "val_loss": 0.25}, "re-finetuned": {"val_accuracy": 0.8875}}
            more = {"name": "tiny on sst2", "flops": count_flops(encoder), "latency": (LATENCY,), "scores": scores}
            known[preset, ratio] = plan, Facts.of(plan, notes, **more)
        return known[preset, ratio]

    return make
