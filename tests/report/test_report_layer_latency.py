"""Latency and FLOPs compared with the dense encoder."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import MODEL_TYPES, classifier, pruned

from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.report.layer_latency import count_flops, measure_layer_latency


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_both_are_measured_and_the_model_is_not_modified(model_type: str) -> None:
    model = pruned(model_type, layers=1).train()
    encoder = find_encoder(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    found = measure_layer_latency(encoder, batch_size=2, length=128, repeats=2, min_time=0.001)
    drawn = torch.rand(1)
    assert (found.batch_size, found.length) == (2, encoder.max_length)  # clipped to the maximum length
    assert len(found.dense) == len(found.pruned) == 2
    assert all(seconds > 0 for seconds in (*found.dense, *found.pruned))
    assert found.device.startswith("CPU, ")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)  # the random state is restored


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_flops_of_both_encoders(model_type: str) -> None:
    dense = encoder_cost(find_encoder(classifier(model_type, layers=1)))
    encoder = find_encoder(pruned(model_type, layers=1))
    assert count_flops(encoder) == {"dense": dense.flops, "pruned": encoder_cost(encoder).flops}
    assert encoder_cost(encoder).flops < dense.flops
