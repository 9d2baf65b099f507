"""All presets reach their ratio in every family, and what they make can be stored, copied and pruned further."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from helpers.families import TINY, accepted, tiny_batches, tiny_logits, tiny_model

from pgb_lightning import PruningConfig, PruningPlan, dense_twin
from pgb_lightning.calibration import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.config import PRESETS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.fingerprint import fingerprint
from pgb_lightning.pruning import carry_out, make_plan, prepare
from pgb_lightning.search.candidates import list_candidates
from pgb_lightning.shapes import Groups
from pgb_lightning.surgery.checks import matches


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


@pytest.mark.parametrize(("preset", "ratio"), [("default", 0.5), ("balanced", 0.5), ("paper", 0.7)])
@pytest.mark.parametrize("model_type", TINY)
def test_a_preset_reaches_its_ratio(model_type: str, preset: str, ratio: float, calibrated: Any) -> None:
    model, plan = calibrated(model_type).pruned(preset, ratio)
    identity = fingerprint(find_encoder(tiny_model(model_type)))
    assert plan.pruning_ratio == pytest.approx(ratio, abs=0.015)
    assert plan.fingerprint == identity
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert matches(find_encoder(model), plan)
    torch.testing.assert_close(tiny_logits(dense_twin(model)), tiny_logits(model), rtol=0, atol=1e-4)


def test_there_are_no_other_presets() -> None:
    assert {*PRESETS} == {"default", "balanced", "paper"}


@pytest.mark.parametrize("model_type", TINY)
def test_pruning_further(model_type: str, calibrated: Any) -> None:
    """What is split into blocks cannot be pruned further, so there are none."""
    case, plans = calibrated(model_type), []
    model = copy.deepcopy(case.model)
    encoder, statistics = find_encoder(model), case.statistics
    for ratio in (0.3, 0.6):
        config = PruningConfig(pruning_ratio=ratio, max_groups=1)
        if plans:
            statistics = calibrate(encoder, tiny_batches(4), model_loss(model), moments=True)
        # Without Q and K, nothing can be removed either.
        found = list_candidates(encoder, statistics, config)
        narrow = [[one for one in options if not isinstance(one.shape, Groups)] for options in found]
        plans.append(make_plan(prepare(model, config), statistics, config, narrow))
        carry_out(encoder, plans[-1], statistics, config)
        assert plans[-1].pruning_ratio == pytest.approx(ratio, abs=0.02)
        assert matches(encoder, plans[-1])
        torch.testing.assert_close(tiny_logits(dense_twin(model)), tiny_logits(model), rtol=0, atol=1e-4)
    assert plans[-1].dense_sizes is not None
    assert PruningPlan.from_json(plans[-1].to_json()) == plans[-1]


def copies(model: Any) -> dict[str, Any]:
    """Return a model as it is after each way of copying it."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(buffer, weights_only=False),
    }


@pytest.mark.parametrize("model_type", TINY)
def test_copies_and_other_precisions(model_type: str, calibrated: Any) -> None:
    model, _ = calibrated(model_type).pruned()
    expected = tiny_logits(model)
    for copied in copies(model).values():
        assert torch.equal(tiny_logits(copied), expected)
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    torch.testing.assert_close(tiny_logits(other), expected, rtol=0, atol=1e-4)
    dense = calibrated(model_type).model
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.08), (torch.float64, 1e-5)):
        converted = [copy.deepcopy(one).to(dtype) for one in (dense, model)]
        with accepted(converted[0]) as is_accepted:
            found = tiny_logits(converted[1])
        if is_accepted:
            assert found.dtype == dtype
            assert distance(found.float(), expected) < tolerance * max(1.0, float(expected.abs().max()))
    with torch.autocast("cpu", torch.bfloat16), accepted(dense) as is_accepted:
        found = tiny_logits(model)
    if is_accepted:
        assert distance(found.float(), expected) < 0.08 * max(1.0, float(expected.abs().max()))
