"""Target speedups: the budget is corrected by the measured latency of the whole encoder."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier
from test_candidates import candidates_of, statistics_of

from pgb_lightning import PruningConfig
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import make_plan
from pgb_lightning.search import speedup
from pgb_lightning.search.speedup import MAX_ROUNDS, TOLERANCE, measure_latency_ratio, meet_speedup

CONFIG = PruningConfig(target_speedup=2.0, latency_batch_size=2, latency_length=8)


def plans_of(model: torch.nn.Module):
    """Make plans that remove a fraction of the weights, which stands for latency here."""
    encoder = find_encoder(model)
    statistics, candidates = statistics_of(model, batches(6)), candidates_of(model)

    def plan_at(ratio: float) -> tuple[PruningPlan, float]:
        plan = make_plan(encoder, statistics, PruningConfig(pruning_ratio=ratio), candidates)
        return plan, plan.pruning_ratio

    return encoder, plan_at


@pytest.mark.filterwarnings("ignore:pruning_ratio=.*was asked for")
@pytest.mark.parametrize("overhead", [0.0, 0.1, 0.2])
def test_overhead_missing_from_the_table_is_compensated(overhead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an overhead that no shape removes, plans miss the target until more is removed."""
    encoder, plan_at = plans_of(classifier(layers=2))
    measured: list[float] = []

    def ratio(_: object, plan: PruningPlan, batch_size: int, length: int, runtime: str) -> float:
        assert (batch_size, length, runtime) == (2, 8, "torch")
        measured.append(overhead + (1 - overhead) * (1 - plan.pruning_ratio))
        return measured[-1]

    monkeypatch.setattr(speedup, "measure_latency_ratio", ratio)
    plan, removed = meet_speedup(encoder, CONFIG, plan_at)
    assert abs(removed - 0.5) < 0.02
    assert 1 - removed == min(measured, key=lambda kept: abs(kept - 0.5))
    assert abs(plan.pruning_ratio - 0.5 / (1 - overhead)) < 0.03
    assert len(measured) == 1 if overhead == 0 else 1 < len(measured) <= MAX_ROUNDS


@pytest.mark.filterwarnings("ignore:pruning_ratio=.*was asked for")
def test_an_unreachable_target_gives_the_nearest_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, plan_at = plans_of(classifier(layers=2))
    monkeypatch.setattr(speedup, "measure_latency_ratio", lambda _, plan, *__: 0.9 - plan.pruning_ratio / 10)
    plan, removed = meet_speedup(encoder, CONFIG, plan_at)
    assert 0.1 < removed < 0.5 * (1 - TOLERANCE)
    assert plan.pruning_ratio > 0.9


@pytest.mark.filterwarnings("ignore:pruning_ratio=.*is the target")
@pytest.mark.parametrize(("first", "then", "expected"), [(0.45, 0.6, 0.6), (0.6, 0.45, 0.6), (0.45, 0.47, 0.47)])
def test_a_plan_that_removes_more_than_asked_is_the_last_choice(
    first: float, then: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 0.45 and 0.6 the first is nearer to 0.5, but removes too much."""
    encoder, plan_at = plans_of(classifier(layers=2))
    measured = iter([first, *[then] * MAX_ROUNDS])
    monkeypatch.setattr(speedup, "measure_latency_ratio", lambda *_: next(measured))
    _, removed = meet_speedup(encoder, CONFIG, plan_at)
    assert 1 - removed == pytest.approx(expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_measuring_a_plan_leaves_the_encoder_unchanged(model_type: str) -> None:
    model = classifier(model_type, layers=1).train()
    encoder, plan_at = plans_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert measure_latency_ratio(encoder, plan_at(0.5)[0], 2, 8) > 0
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
