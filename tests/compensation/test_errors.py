"""Errors recorded by compensation equal those computed from runs of both models."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.kinds import MATRICES, SUBLAYERS
from helpers.tiny import MODEL_TYPES, batches, classifier
from torch import Tensor, nn

from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.compensation.errors import FitErrors, relative_error
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import carry_out, make_plan
from pgb_lightning.surgery.folding import fold

BATCHES = batches(6)


def refitted(model_type: str, preset: str, ratio: float) -> tuple[Encoder, Encoder, PruningPlan, FitErrors]:
    """Prune a model with compensation; return it dense and pruned, with the plan and the recorded errors."""
    model, errors = classifier(model_type, layers=2), FitErrors()
    dense, pruned = find_encoder(copy.deepcopy(model)), find_encoder(model)
    config = PruningConfig.from_preset(preset, pruning_ratio=ratio)
    statistics = calibrate(pruned, BATCHES, lambda batch: model(**batch).loss, moments=config.needs_moments)
    plan = make_plan(pruned, statistics, config)
    carry_out(pruned, plan, statistics, config, errors=errors)
    return dense, pruned, plan, errors


@torch.no_grad()
def outputs(encoder: Encoder, module: nn.Module) -> Tensor:
    """Collect the outputs of a module at real tokens."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda _, args, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    for batch in BATCHES:
        encoder.model(batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    real = [batch["attention_mask"].bool() for batch in BATCHES]
    return torch.cat([each.reshape(*mask.shape, -1)[mask] for each, mask in zip(found, real, strict=True)]).double()


def compared(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).square().sum() / (expected - expected.mean(0)).square().sum())


@pytest.mark.parametrize(
    ("model_type", "preset", "ratio"),
    [*((model_type, "default", 0.5) for model_type in MODEL_TYPES), ("bert", "paper", 0.35)],
)
def test_errors_equal_the_differences_of_both_models(model_type: str, preset: str, ratio: float) -> None:
    dense, pruned, plan, errors = refitted(model_type, preset, ratio)
    assert set(errors.matrices) == {(layer, kind) for layer in range(2) for kind in MATRICES}
    seen = 0
    for (layer, kind), error in errors.matrices.items():
        sublayer = next(name for name, kinds in SUBLAYERS.items() if kind in kinds)
        should = outputs(dense, dense.matrix(layer, kind))
        kinds = SUBLAYERS[sublayer]
        hidden = fold([plan.matrix(layer, k) for k in kinds], sublayer, dense.attention_unit).hidden
        if kind != kinds[-1] and hidden is not None:
            should = should[:, list(hidden)]
        expected = compared(outputs(pruned, pruned.matrix(layer, kind)), should)
        assert error == pytest.approx(expected, rel=1e-3, abs=1e-6), f"{layer} {kind}"
        seen += expected > 1e-3
    assert seen > 2  # otherwise nothing was pruned, and nothing compared
    states = [outputs(encoder, encoder.layers[-1]) for encoder in (pruned, dense)]
    assert errors.sublayers[1, "ffn"] == pytest.approx(compared(*states), rel=1e-3)


def test_a_dropped_sublayer_has_error_one() -> None:
    _, _, plan, errors = refitted("bert", "balanced", 0.9)
    dropped = [(layer, name) for layer in range(2) for name in SUBLAYERS if plan.is_dropped(layer, name)]
    assert dropped
    for layer, name in dropped:
        assert errors.matrices[layer, SUBLAYERS[name][-1]] == 1.0
        assert errors.sublayers[layer, name] > 0


def test_recording_errors_does_not_change_the_weights() -> None:
    def weights(errors: FitErrors | None) -> dict[str, Tensor]:
        model = classifier(layers=1)
        encoder, config = find_encoder(model), PruningConfig()
        statistics = calibrate(encoder, BATCHES, lambda batch: model(**batch).loss, moments=True)
        carry_out(encoder, make_plan(encoder, statistics, config), statistics, config, errors=errors)
        return dict(model.state_dict())

    recorded, without = weights(FitErrors()), weights(None)
    assert all(torch.equal(recorded[name], value) for name, value in without.items())


def doubled(tensor: Tensor) -> Tensor:
    return tensor * 2


@pytest.mark.parametrize("reduce", [lambda tensor: tensor, doubled])
def test_processes_with_equal_data_give_the_error_of_one(reduce: Callable[[Tensor], Tensor]) -> None:
    expected = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) + 5
    pairs = [(expected[:7] + 0.1, expected[:7]), (expected[7:] - 0.1, expected[7:])]
    error = relative_error(iter(pairs), 3, torch.device("cpu"), reduce)
    assert error == pytest.approx(
        compared(torch.cat([actual for actual, _ in pairs]).double(), expected.double()), rel=1e-4
    )


def test_without_batches_the_error_is_zero() -> None:
    assert relative_error([], 3, torch.device("cpu"), lambda tensor: tensor) == 0.0


def test_an_error_is_never_negative() -> None:
    errors = FitErrors()
    errors.add_matrix((0, "Q"), total=1.0, explained=1.0 + 1e-12)
    errors.add_matrix((0, "K"), total=0.0, explained=0.0)
    assert errors.matrices == {(0, "Q"): 0.0, (0, "K"): 0.0}
