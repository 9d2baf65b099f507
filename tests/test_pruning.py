"""``prune``: one call prunes a model of any family, meets its target, and refuses what it cannot do."""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import replace

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier, logits, pruned
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pgb_lightning import PruningConfig, prune
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.config import PRESETS
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import make_plan
from pgb_lightning.search.candidates import Candidate, list_candidates
from pgb_lightning.surgery.dense_twin import dense_twin


@pytest.mark.parametrize(
    ("model_type", "ratio"), [(m, r) for m in MODEL_TYPES for r in (0.3, 0.5, 0.7, 0.88) if m == "bert" or r == 0.5]
)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_target_is_met_within_a_point(model_type: str, preset: str, ratio: float) -> None:
    model = classifier(model_type)
    plan = prune(model, batches(4), PruningConfig.from_preset(preset, pruning_ratio=ratio))
    left = encoder_cost(find_encoder(model)).parameters
    assert left == plan.kept_parameters
    assert abs(1 - left / plan.total_parameters - ratio) <= 0.01
    assert plan.num_samples == 32
    assert model(**batches(1)[0]).loss.isfinite()


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(ratio=st.floats(0.1, 0.9), preset=st.sampled_from(sorted(PRESETS)))
def test_kept_parameters_are_exactly_as_planned(ratio: float, preset: str) -> None:
    model = classifier(layers=2)
    plan = prune(model, batches(2), PruningConfig.from_preset(preset, pruning_ratio=ratio))
    assert encoder_cost(find_encoder(model)).parameters == plan.kept_parameters


def test_the_same_seed_and_data_give_the_same_plan_and_weights() -> None:
    first, second = classifier(), classifier()
    assert prune(first, batches(4)) == prune(second, batches(4))
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())


@pytest.mark.parametrize(
    "config",
    [PruningConfig(fisher="predictions"), PruningConfig(fisher="outputs"), PruningConfig.from_preset("balanced")],
    ids=["predictions", "outputs", "balanced"],
)
def test_the_default_device_of_new_tensors_does_not_matter(config: PruningConfig) -> None:
    expected, found = classifier(), classifier()
    plan, data = prune(expected, batches(2), config), batches(2)
    with torch.device("meta"):  # as after torch.set_default_device("cuda"), with a model on the CPU
        assert prune(found, data, config) == plan
        twin = dense_twin(found)
    assert all(torch.equal(found.state_dict()[name], value) for name, value in expected.state_dict().items())
    torch.testing.assert_close(logits(twin), logits(expected))


@pytest.mark.slow
def test_one_calibration_serves_every_ratio_and_any_cost() -> None:
    model = classifier()
    encoder = find_encoder(model)
    statistics = calibrate(encoder, batches(4), lambda batch: model(**batch).loss, moments=True)
    candidates = list_candidates(encoder, statistics, PruningConfig())
    losses = []
    for ratio in (0.1, 0.3, 0.5, 0.7, 0.9):
        config = PruningConfig(pruning_ratio=ratio)
        plan = make_plan(encoder, statistics, config, candidates)
        assert plan == make_plan(encoder, statistics, config)
        assert 0 <= plan.pruning_ratio - ratio <= 0.005
        losses.append(sum(matrix.predicted_error or 0.0 for matrix in plan.matrices))
        assert plan.config["search"] == "shapes"
        assert len(plan.config["shapes"]) == 6
    assert losses == sorted(losses)

    def attention_is_free(candidate: Candidate) -> float:
        return 0.0 if candidate.sublayer == "attention" else candidate.parameters

    plan = make_plan(encoder, statistics, PruningConfig(pruning_ratio=0.5), candidates, cost=attention_is_free)
    assert plan.pruning_ratio == pytest.approx(0.5 * 2 / 3, abs=0.005)
    assert all(plan.matrix(layer, "O").input_index is None for layer in range(3))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.9])
def test_every_shape_computes_what_its_dense_twin_computes(model_type: str, ratio: float) -> None:
    model = pruned(model_type, ratio)
    torch.testing.assert_close(logits(dense_twin(model)), logits(model), rtol=1e-4, atol=1e-5)


def test_the_search_is_nearer_to_the_dense_model_than_the_paper_s_recipe() -> None:
    dense = logits(classifier())
    errors = {}
    for preset in ("default", "paper"):
        model = classifier()
        prune(model, batches(6), PruningConfig.from_preset(preset, pruning_ratio=0.5))
        errors[preset] = float((logits(model) - dense).square().mean())
    assert errors["default"] < 0.7 * errors["paper"]


def test_statistics_without_moments_are_refused() -> None:
    model = classifier(layers=1)
    statistics = calibrate(find_encoder(model), batches(1), lambda batch: model(**batch).loss)
    with pytest.raises(ValueError, match=r"search=.shapes.* moments=True"):
        make_plan(find_encoder(model), statistics, PruningConfig())


def test_a_custom_module_with_a_custom_loss() -> None:
    class Regressor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = classifier().bert
            self.head = nn.Linear(24, 1)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(tokens).last_hidden_state.mean(1)).squeeze(1)

    model = Regressor().train()
    data = [(batch["input_ids"], batch["labels"].float()) for batch in batches(3)]
    plan = prune(model, data, loss=lambda batch: nn.functional.mse_loss(model(batch[0]), batch[1]))
    assert plan.pruning_ratio == pytest.approx(0.5, abs=0.01)
    assert all(module.training for module in model.modules())
    model(data[0][0]).sum().backward()
    assert all(parameter.grad is not None for parameter in find_encoder(model).model.encoder.parameters())


def test_a_given_threshold_is_used_as_it_is_and_a_missed_target_is_reported() -> None:
    model = classifier()
    config = PruningConfig.from_preset("paper", pruning_ratio=0.5, importance_threshold=1e-30)
    with pytest.warns(UserWarning, match=r"pruning_ratio=0\.5 .* 0\.4444 .*auto"):
        plan = prune(model, batches(2), config)
    # Algorithm 1 keeps attention and one of the feed-forward sublayers, which fills the budget.
    assert plan.pruning_ratio == pytest.approx(2 / 3 * 2 / 3)
    assert plan.config["importance_threshold_used"] == 1e-30


@pytest.mark.parametrize("preset", ["paper", "balanced"])
def test_a_given_threshold_that_would_remove_more_is_refused(preset: str) -> None:
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    config = PruningConfig.from_preset(preset, pruning_ratio=0.5, importance_threshold=1e9)
    with pytest.raises(
        ValueError, match=r"importance_threshold=1000000000\.0 .*1\.0000.*pruning_ratio=0\.5.*auto"
    ) as error:
        prune(model, batches(2), config)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    largest = float(re.search(r"at most ([^,]+),", str(error.value))[1])  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # less than the target may be removed
        plan = prune(model, batches(2), replace(config, importance_threshold=largest))
    assert plan.pruning_ratio <= 0.5 + config.tolerance


@pytest.mark.parametrize(
    ("ratio", "shapes", "removed"),
    [
        (0.5, (("2 heads", "dropped"), ("96 neurons", "dropped")), "0.3333"),  # not 0.6667, which removes more
        (0.9, (("2 heads", "dropped"), ("96 neurons",)), "0.3333"),
    ],
)
def test_a_warning_reports_that_no_shapes_meet_the_target(
    ratio: float, shapes: tuple[tuple[str, ...], ...], removed: str
) -> None:
    model = classifier(layers=1)
    encoder, config = find_encoder(model), PruningConfig(pruning_ratio=ratio)
    statistics = calibrate(encoder, batches(2), lambda batch: model(**batch).loss, moments=True)
    found = list_candidates(encoder, statistics, config)
    few = [[one for one in options if str(one.shape) in names] for options, names in zip(found, shapes, strict=True)]
    with pytest.warns(UserWarning, match=f"pruning_ratio={ratio} .* {removed}"):
        make_plan(encoder, statistics, config, few)


def test_warnings_of_calibration_are_issued_at_the_caller() -> None:
    model = classifier(layers=1)
    weights = iter((1.0, 0.0))
    with pytest.warns(UserWarning, match="Only 8 of 16 calibration samples") as issued:
        prune(model, batches(2), loss=lambda batch: next(weights) * model(**batch).loss)
    assert [each.filename for each in issued if "calibration samples" in str(each.message)] == [__file__]


def test_two_encoders_and_one_named() -> None:
    both = nn.ModuleDict({"a": classifier(), "b": classifier("roberta")})
    with pytest.raises(ValueError, match="holds 2 encoders"):
        prune(both, batches(1))
    prune(both, batches(2), encoder="b", loss=lambda batch: both["b"](**batch).loss)
    assert encoder_cost(find_encoder(both, "a")).parameters == 2 * encoder_cost(find_encoder(both, "b")).parameters


def test_bad_calls_leave_the_model_as_it_was() -> None:
    model = classifier(layers=1)
    before = copy.deepcopy(model.state_dict())
    unlabeled = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches(1)]
    with pytest.raises(ValueError, match="fisher='predictions'"):
        prune(model, unlabeled, PruningConfig(fisher="labels"))
    with pytest.raises(TypeError, match="tuple"):
        prune(model, [tuple(batch.values()) for batch in batches(1)])
    with pytest.raises(ValueError, match="calibration loader"):
        prune(model, [])

    def never() -> object:
        raise AssertionError("data must not be read before the target is checked")
        yield

    with pytest.raises(ValueError, match="max_groups=1"):
        prune(model, never(), PruningConfig.from_preset("balanced", max_groups=1))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
