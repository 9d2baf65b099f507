"""Masks on heads, neurons and sublayers, and their removal."""

from __future__ import annotations

import pytest
import torch
from helpers.families import DIFFERENT, tiny_logits, tiny_model
from helpers.tiny import batches, classifier
from torch import nn

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.masks import kept_weights
from pgb_lightning.experiments.baselines.trained.units import (
    Mask,
    as_masks,
    attach_masks,
    choose_units,
    closing,
    num_units,
    places,
    remove_units,
    unit_sums,
)
from pgb_lightning.surgery.dense_twin import dense_twin


@pytest.mark.parametrize("model_type", DIFFERENT)
def test_what_is_removed_equals_what_was_masked(model_type: str) -> None:
    with torch.no_grad():
        model = tiny_model(model_type)
    encoder = find_encoder(model)
    generator = torch.Generator().manual_seed(0)
    scores = {place: torch.rand(num_units(encoder, place[1]), generator=generator) for place in places(encoder)}
    kept = choose_units(encoder, scores, 0.5)
    kept[1, "ffn"] = kept[1, "ffn"][:0]
    masks = {
        place: Mask(mask.units * (0.5 + scores[place]), mask.output * 0.7)  # type: ignore[operator]
        for place, mask in as_masks(encoder, kept).items()
    }
    with torch.no_grad():
        before = tiny_logits(model)
        handles = attach_masks(encoder, masks.__getitem__)
        masked = tiny_logits(model)
        for handle in handles:
            handle.remove()
        assert torch.equal(tiny_logits(model), before)
        assert not torch.allclose(masked, before, atol=1e-3)
        remove_units(encoder, masks)
        torch.testing.assert_close(tiny_logits(model), masked, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tiny_logits(dense_twin(model)), masked, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.88])
def test_units_fill_the_budget_in_the_order_of_their_scores(ratio: float) -> None:
    model = classifier(layers=2)
    encoder = find_encoder(model)
    total = kept_weights(encoder)
    scores = {place: torch.rand(num_units(encoder, place[1])) for place in places(encoder)}
    kept = choose_units(encoder, scores, ratio)
    neurons = torch.cat([scores[layer, "ffn"] for layer in (0, 1)])
    chosen = torch.cat([scores[layer, "ffn"][kept[layer, "ffn"]] for layer in (0, 1)])
    assert set(chosen.tolist()) == set(neurons.topk(len(chosen)).values.tolist())
    remove_units(encoder, as_masks(encoder, kept))
    assert 0 <= 1 - kept_weights(encoder) / total - ratio < 0.01


def test_one_score_stands_for_a_whole_sublayer() -> None:
    encoder = find_encoder(classifier())
    scores = {place: torch.tensor([float(place == (1, "ffn"))]) for place in places(encoder)}
    kept = choose_units(encoder, scores, 0.75)  # a feed-forward sublayer has two ninths of the weights
    assert {place: len(units) for place, units in kept.items() if len(units)} == {(1, "ffn"): 96}


def test_masks_may_depend_on_the_sample() -> None:
    model, (batch,) = classifier(), batches(1, size=2)
    encoder = find_encoder(model)
    factors = torch.stack([torch.ones(96), torch.zeros(96)])
    handles = attach_masks(encoder, lambda place: Mask(factors) if place[1] == "ffn" else Mask())
    with torch.no_grad():
        masked = model(**batch).logits
        for handle in handles:
            handle.remove()
        assert torch.allclose(masked[0], model(**batch).logits[0], atol=1e-5)
        assert not torch.allclose(masked[1], model(**batch).logits[1], atol=1e-3)


@pytest.mark.parametrize("model_type", ["bert", "deberta", "modernbert", "eurobert"])
def test_sums_over_units_have_all_weights(model_type: str) -> None:
    with torch.no_grad():
        encoder = find_encoder(tiny_model(model_type))

    def number(linear: nn.Linear) -> torch.Tensor:
        return torch.ones_like(linear.weight)

    sums = unit_sums(encoder, number)
    assert sum(int(each.sum()) for each in sums.values()) == kept_weights(encoder)
    for place, each in sums.items():
        assert each.shape == (num_units(encoder, place[1]),)
        assert (each == each[0]).all()
    assert closing(encoder, (0, "ffn")) is encoder.matrix(0, "W2")


def test_a_mask_has_the_gradient_of_its_columns_in_the_closing_matrix() -> None:
    model, (batch,) = classifier(), batches(1)
    encoder = find_encoder(model)
    units = {place: torch.ones(num_units(encoder, place[1]), requires_grad=True) for place in places(encoder)}
    handles = attach_masks(encoder, lambda place: Mask(units[place]))
    model(**batch).loss.backward()
    for handle in handles:
        handle.remove()
    for place, factors in units.items():
        weight = closing(encoder, place).weight
        assert weight.grad is not None
        by_unit = (weight * weight.grad).T.reshape(len(factors), -1).sum(1)
        torch.testing.assert_close(factors.grad, by_unit, atol=1e-6, rtol=1e-4)
