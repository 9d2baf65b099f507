"""Pruning inside autocast, and with a loss that uses it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model

from pgb_lightning import MatrixPlan, PruningConfig, PruningPlan, apply_plan, follow_state_dict
from pgb_lightning.calibration import Covariance, calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import carry_out, collect_statistics, make_plan

#: Families that project their embeddings, so that the first layer reads what autocast has converted.
PROJECTED = ("electra", "albert")


def bfloat16(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("where", ["around", "in the loss"])
@pytest.mark.parametrize("model_type", PROJECTED)
def test_autocast_hardly_changes_compensation(model_type: str, where: str) -> None:
    dense, config, batches = tiny_model(model_type), PruningConfig(), tiny_batches(16)
    encoder = find_encoder(dense)
    expected = tiny_logits(dense)
    statistics, _ = collect_statistics(dense, encoder, batches, config)
    plan = make_plan(encoder, statistics, config)
    errors = {}
    for autocast in (False, True):
        model = copy.deepcopy(dense)
        run = model_loss(model)

        def loss(batch: dict[str, torch.Tensor], autocast: bool = autocast, run: object = run) -> torch.Tensor:
            with bfloat16(autocast):
                return run(batch)  # type: ignore[no-any-return, operator]

        with bfloat16(autocast and where == "around"):
            found, _ = collect_statistics(model, find_encoder(model), batches, config, loss)
            carry_out(find_encoder(model), plan, found, config)
        errors[autocast] = (tiny_logits(model) - expected).norm()
    assert errors[True] < 1.1 * errors[False]


def test_moments_are_exact_inside_autocast() -> None:
    vectors = torch.randn(50, 7)
    exact, found = Covariance(7), Covariance(7)
    exact.add(vectors)
    with bfloat16():
        found.add(vectors)
    assert torch.equal(found.finish(), exact.finish())


@pytest.mark.parametrize("model_type", PROJECTED)
def test_a_model_runs_its_fitted_weights_in_the_autocast_in_which_it_was_pruned(model_type: str) -> None:
    model, config, batches = tiny_model(model_type), PruningConfig(), tiny_batches(4)
    encoder = find_encoder(model)
    with bfloat16():
        statistics, _ = collect_statistics(model, encoder, batches, config)
        carry_out(encoder, make_plan(encoder, statistics, config), statistics, config)
        inside = tiny_logits(model)
    with bfloat16():
        assert torch.equal(tiny_logits(model), inside)


def test_stored_inputs_have_the_data_type_of_the_weights() -> None:
    model = tiny_model("electra")
    with bfloat16():
        found = calibrate(find_encoder(model), tiny_batches(1), model_loss(model))
    assert {given.hidden.dtype for given in found.inputs} == {torch.float32}


@pytest.mark.parametrize("way", ["apply_plan", "load_state_dict"])
def test_fused_weights_that_are_reordered_inside_autocast(way: str) -> None:
    """W2's groups read other neurons than the first and the last half, so those of the dense Wi are put in order."""
    model, other = tiny_model("modernbert"), tiny_model("modernbert")
    encoder = find_encoder(model)
    groups: Any = {"input_index": (tuple(range(0, 96, 2)), tuple(range(1, 96, 2)))}
    groups["output_index"] = (tuple(range(24)), tuple(range(24, 48)))
    matrices = (
        MatrixPlan(layer, kind, *linear.weight.T.shape, **groups if kind == "W2" else dict.fromkeys(groups))
        for (layer, kind), linear in encoder.linears()
    )
    plan = PruningPlan("modernbert", tuple(matrices))
    if way == "load_state_dict":
        apply_plan(other, plan)
        follow_state_dict(model)
    with bfloat16():
        tiny_logits(model)
        if way == "load_state_dict":
            model.load_state_dict(other.state_dict())
        else:
            apply_plan(model, plan)
        inside = tiny_logits(model)
    with bfloat16():
        assert torch.equal(tiny_logits(model), inside)
