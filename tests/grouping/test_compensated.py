"""Compensated grouping: optimal columns, less error than by importance, the same neuron groups in W1 and W2."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.tiny import batches, classifier
from torch import Tensor

from pgb_lightning import PruningConfig, prune
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.grouping.compensated import assign_columns, compensated_groups, group_matrices, obs_saliency
from pgb_lightning.grouping.permutation import Blocks, group
from pgb_lightning.prediction.elimination import add_damping, block_errors
from pgb_lightning.pruning import make_plan

CONFIG = PruningConfig(search="groups", permutation="compensated", pruning_ratio=0.5)


def problem(inputs: int, outputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make H of correlated inputs, W, and the diagonal of A."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((50, inputs), (inputs, inputs))]
    x = draw[0] @ (draw[1] + torch.eye(inputs)) - 0.5
    weight = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    return add_damping(x.T @ x / len(x), 1e-6), weight, torch.rand(outputs, generator=generator, dtype=torch.float64)


def lost(covariance: Tensor, weight: Tensor, outputs: Tensor, groups: Blocks) -> float:
    errors = block_errors(covariance, weight, covariance @ weight, groups.rows, groups.columns)
    return float((errors * outputs).sum())


@pytest.mark.parametrize("seed", range(5))
def test_columns_are_optimal_for_the_given_rows(seed: int) -> None:
    covariance, weight, outputs = problem(6, 6, seed)
    rows = torch.tensor([[0, 4], [1, 3], [2, 5]])
    found = lost(covariance, weight, outputs, assign_columns(covariance, covariance @ weight, outputs, rows))
    best = min(
        lost(covariance, weight, outputs, Blocks(rows, torch.tensor(order).view(3, 2)))
        for order in itertools.permutations(range(6))
    )
    assert found == pytest.approx(best)


@pytest.mark.parametrize("number", [2, 3, 6])
def test_the_error_is_less_than_with_grouping_by_importance(number: int) -> None:
    ratios = []
    for seed in range(8):
        covariance, weight, outputs = problem(24, 48, seed)
        groups = compensated_groups(
            covariance,
            covariance @ weight,
            outputs,
            obs_saliency(covariance, weight, outputs),
            number,
            num_permutations=6,
        )
        assert sorted(groups.rows.flatten().tolist()) == list(range(24))
        assert sorted(groups.columns.flatten().tolist()) == list(range(48))
        by_importance = group(outputs * weight.square() * covariance.diagonal().unsqueeze(1), number, "balanced", 6)
        ratios.append(lost(covariance, weight, outputs, groups) / lost(covariance, weight, outputs, by_importance))
    assert sum(ratios) / len(ratios) < 0.95


def test_w1_and_w2_group_neurons_alike_if_both_have_the_same_number_of_groups() -> None:
    model = classifier(layers=1)
    statistics = calibrate(find_encoder(model), batches(6), lambda batch: model(**batch).loss, moments=True)
    numbers = {(0, "Q"): 1, (0, "K"): 0, (0, "V"): 2, (0, "O"): 3, (0, "W1"): 4, (0, "W2"): 4}
    found = group_matrices(find_encoder(model), statistics, CONFIG, numbers)
    assert found.keys() == {(0, "V"), (0, "O"), (0, "W1"), (0, "W2")}
    assert torch.equal(found[0, "W1"].columns, found[0, "W2"].rows)
    apart = group_matrices(find_encoder(model), statistics, CONFIG, {**numbers, (0, "W2"): 2})
    assert apart[0, "W2"].rows.shape == (2, 48)
    assert torch.equal(apart[0, "W1"].columns, found[0, "W1"].columns)


def test_a_model_is_pruned_with_compensated_grouping() -> None:
    model, data = classifier(), batches(6)
    plan = prune(model, data, CONFIG)
    assert plan.pruning_ratio == pytest.approx(0.5, abs=0.01)
    pairs = [(plan.matrix(layer, "W1"), plan.matrix(layer, "W2")) for layer in range(plan.num_layers)]
    alike = [(w1, w2) for w1, w2 in pairs if w1.num_groups == w2.num_groups > 1]
    assert alike
    assert all(w1.output_index == w2.input_index for w1, w2 in alike)
    assert model(**data[0]).loss.isfinite()


@pytest.mark.parametrize("search", ["groups", "shapes"])
def test_statistics_without_moments_raise(search: str) -> None:
    model = classifier(layers=1)
    statistics = calibrate(find_encoder(model), batches(6), lambda batch: model(**batch).loss)
    config = PruningConfig(search=search, permutation="compensated")
    setting = "permutation='compensated'" if search == "groups" else 'search="shapes"'
    with pytest.raises(ValueError, match=f"{setting} .*moments=True"):
        make_plan(find_encoder(model), statistics, config)


@pytest.mark.parametrize("search", ["groups", "shapes"])
def test_a_tiny_ridge_on_few_tokens_gives_finite_weights(search: str) -> None:
    few = {name: values[:2, :4] if values.dim() == 2 else values[:2] for name, values in batches(1)[0].items()}
    model = classifier(layers=2)
    prune(model, [few], PruningConfig(search=search, permutation="compensated", ridge=1e-9))
    assert model(**few).loss.isfinite()
