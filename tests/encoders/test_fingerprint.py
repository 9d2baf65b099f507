"""The fingerprint depends on the prunable weights, their positions, shapes and dtype only."""

from __future__ import annotations

import torch
from helpers.tiny import batches, classifier

from pgb_lightning import PruningConfig, prune
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.fingerprint import fingerprint


def test_it_changes_only_with_the_prunable_weights() -> None:
    model = classifier()
    first = fingerprint(find_encoder(model))
    assert first == fingerprint(find_encoder(classifier()))
    with torch.no_grad():
        model.classifier.weight.add_(1)  # type: ignore[union-attr, operator]
    assert fingerprint(find_encoder(model.train())) == first
    with torch.no_grad():
        find_encoder(model).matrix(2, "W2").weight[0, 0] += 1e-6  # type: ignore[operator, index]
    assert fingerprint(find_encoder(model)) != first
    assert fingerprint(find_encoder(classifier(seed=1))) != first
    assert fingerprint(find_encoder(classifier(layers=2))) != first
    assert fingerprint(find_encoder(classifier().bfloat16())) != first


def test_a_plan_stores_the_fingerprint_of_the_dense_weights() -> None:
    model = classifier()
    expected = fingerprint(find_encoder(model))
    assert prune(model, batches(), PruningConfig()).fingerprint == expected
