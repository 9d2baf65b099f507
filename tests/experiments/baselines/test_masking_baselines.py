"""Global magnitude pruning and Lightning's callback give the same masks, which are kept in training."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier, logits

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines import make_permanent
from pgb_lightning.experiments.baselines.magnitude import prune_by_magnitude
from pgb_lightning.experiments.baselines.masks import kept_weights, mask_matrices
from pgb_lightning.experiments.baselines.model_pruning import prune_with_model_pruning


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_smallest_weights_are_masked(model_type: str) -> None:
    model = classifier(model_type)
    encoder = find_encoder(model)
    weights = torch.cat([linear.weight.detach().abs().flatten() for _, linear in encoder.linears()])
    total = kept_weights(encoder)
    prune_by_magnitude(model, None, 0.7)
    assert kept_weights(encoder) / total == pytest.approx(0.3, abs=1e-4)
    bound = weights.kthvalue(round(0.7 * total)).values
    for _, linear in encoder.linears():
        assert torch.equal(linear.weight == 0, linear.weight_orig.abs() <= bound)


@pytest.mark.parametrize("ratio", [0.3, 0.88])
def test_model_pruning_makes_the_same_masks(ratio: float) -> None:
    ours, theirs = classifier(), classifier()
    prune_by_magnitude(ours, None, ratio)
    prune_with_model_pruning(theirs, None, ratio)
    for (_, one), (_, other) in zip(find_encoder(ours).linears(), find_encoder(theirs).linears(), strict=True):
        assert torch.equal(one.weight_mask, other.weight_mask)


def test_masks_are_kept_in_training_and_become_zeros() -> None:
    model = classifier()
    encoder = find_encoder(model)
    prune_by_magnitude(model, None, 0.5)
    masks = [linear.weight_mask.clone() for _, linear in encoder.linears()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in batches(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    after = logits(model)
    make_permanent(model)
    assert not any("mask" in name or "orig" in name for name in model.state_dict())
    for mask, (_, linear) in zip(masks, encoder.linears(), strict=True):
        assert torch.equal(linear.weight == 0, mask == 0)
    torch.testing.assert_close(logits(model), after)


def test_each_matrix_keeps_its_own_fraction() -> None:
    model = classifier()
    encoder = find_encoder(model)
    importances = {key: linear.weight.detach().T.square() for key, linear in encoder.linears()}
    fractions = {key: 0.25 * (number % 5) for number, key in enumerate(importances)}
    mask_matrices(encoder, importances, fractions)
    for key, linear in encoder.linears():
        assert linear.weight_mask.mean() == pytest.approx(fractions[key], abs=1e-3)
        kept, removed = importances[key].T[linear.weight_mask == 1], importances[key].T[linear.weight_mask == 0]
        assert not len(kept) or not len(removed) or kept.min() >= removed.max()
