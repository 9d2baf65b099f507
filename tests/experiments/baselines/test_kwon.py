"""Pruning of heads and neurons by the Fisher information of their masks, compared with brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from helpers.kinds import SUBLAYERS
from helpers.tiny import MODEL_TYPES, batches, classifier, logits
from torch import Tensor, nn

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.kwon import (
    make_mask_plan,
    prune_heads_and_neurons,
    rearrange,
    rearrange_all,
    search,
)
from pgb_lightning.experiments.baselines.mask_gradients import MaskGradients, collect_mask_gradients
from pgb_lightning.experiments.baselines.masks import kept_weights
from pgb_lightning.surgery.checks import is_pruned


def fisher_loss(gradients: Tensor, kept: list[int]) -> float:
    pruned = torch.ones(gradients.shape[1], dtype=torch.bool)
    pruned[kept] = False
    return float(gradients[:, pruned].sum(1).square().sum())


def test_rearrangement_never_increases_the_loss_and_finds_units_that_cancel() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        gradients = torch.randn(20, 8, generator=generator, dtype=torch.double)
        gradients[:, 1] = -gradients[:, 0] + 0.01  # important alone, but not together
        by_diagonal = gradients.square().sum(0).topk(6).indices.tolist()
        kept = rearrange(gradients, 6).tolist()
        assert len(set(kept)) == 6
        assert fisher_loss(gradients, kept) <= fisher_loss(gradients, by_diagonal)
    best = min(combinations(range(8), 6), key=lambda units: fisher_loss(gradients, list(units)))
    assert best == (2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("count", [0, 5])
def test_no_units_or_all_units_can_be_kept(count: int) -> None:
    assert rearrange(torch.eye(5, dtype=torch.double), count).tolist() == list(range(count))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.88])
def test_the_search_finds_the_best_numbers_of_heads_and_neurons(ratio: float) -> None:
    encoder = find_encoder(classifier())
    generator = torch.Generator().manual_seed(1)
    gradients = {
        (layer, name): torch.rand(4, units, generator=generator, dtype=torch.double) * scale
        for layer in range(3)
        for name, units, scale in (("attention", 2, 6.0), ("ffn", 96, 1.0))
    }
    found = MaskGradients(gradients, [])  # type: ignore[arg-type]
    kept = search(encoder, found, ratio)
    plan = make_mask_plan(encoder, kept)
    assert 0 <= plan.pruning_ratio - ratio < 48 / plan.total_parameters  # a neuron has 48 weights

    def lost(number: int) -> float:
        scores = {
            name: torch.cat([gradients[layer, name].square().sum(0) for layer in range(3)]).sort().values  # type: ignore[index]
            for name in SUBLAYERS
        }
        neurons = int(((1 - ratio) * plan.total_parameters - number * 4 * 24 * 12) // 48)
        if neurons < 0:
            return torch.inf
        return float(scores["attention"][: 6 - number].sum() + scores["ffn"][: max(288 - neurons, 0)].sum())

    here = sum(len(units) for (_, name), units in kept.items() if name == "attention")
    assert lost(here) == pytest.approx(min(map(lost, range(7))))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_heads_and_neurons_are_removed(model_type: str) -> None:
    model = classifier(model_type)
    encoder = find_encoder(model)
    total = kept_weights(encoder)
    prune_heads_and_neurons(model, collect_mask_gradients(model, batches()), 0.5)
    assert is_pruned(encoder)
    assert kept_weights(encoder) / total == pytest.approx(0.5, abs=0.01)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])  # heads removed, and heads as one block
def test_tuning_reduces_the_difference_from_the_dense_model(model_type: str) -> None:
    dense = logits(classifier(model_type))
    errors = []
    for tune in (True, False):
        model = classifier(model_type)
        prune_heads_and_neurons(model, collect_mask_gradients(model, batches()), 0.5, tune=tune)
        errors.append(float(nn.functional.mse_loss(logits(model), dense)))
    assert errors[0] < 0.8 * errors[1]


def test_without_tuning_it_equals_the_dense_model_with_zero_masks() -> None:
    model, masked = classifier(), classifier()
    encoder = find_encoder(masked)
    given = batches()
    found = collect_mask_gradients(masked, given)
    kept = rearrange_all(found, search(encoder, found, 0.5))
    prune_heads_and_neurons(model, collect_mask_gradients(model, given), 0.5, tune=False)
    with torch.no_grad():
        for (layer, name), units in kept.items():
            weight = encoder.matrix(layer, SUBLAYERS[name][-1]).weight
            unit = 12 if name == "attention" else 1
            mask = torch.zeros(weight.shape[1] // unit)
            mask[units] = 1
            weight.mul_(mask.repeat_interleave(unit))  # type: ignore[operator]
    torch.testing.assert_close(logits(model), logits(masked))
