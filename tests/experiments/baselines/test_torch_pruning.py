"""`torch-pruning`, where it is installed: the hidden states get narrower, or stay as they are."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier, logits

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.masks import kept_weights
from pgb_lightning.experiments.baselines.torch_pruning import collect_gradients, prune_with_torch_pruning


def test_gradients_are_summed_and_none_is_left_behind() -> None:
    model = classifier()
    found = collect_gradients(model, batches(2))
    assert all(parameter.grad is None for parameter in model.parameters())
    for batch in batches(2):
        model(**batch).loss.backward()
    for parameter, value in zip(model.parameters(), found.values, strict=True):
        torch.testing.assert_close(parameter.grad, value)
    assert set(found.example) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("narrow", [True, False])
def test_shapes_shrink_to_the_budget(model_type: str, narrow: bool) -> None:
    pytest.importorskip("torch_pruning", reason="the baseline is optional: pip install torch-pruning")
    model = classifier(model_type)
    encoder = find_encoder(model)
    total = kept_weights(encoder)
    prune_with_torch_pruning(model, collect_gradients(model, batches()), 0.5, narrow)
    assert kept_weights(encoder) / total == pytest.approx(0.5, abs=0.05)
    width = encoder.matrix(0, "W2").out_features
    assert narrow or width == 24
    assert all(linear.out_features % 12 == 0 for (_, kind), linear in encoder.linears() if kind in "QKV")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert logits(model).isfinite().all()
