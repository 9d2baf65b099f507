"""Parameters and FLOPs, counted from modules, against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier
from torch.utils.flop_counter import FlopCounterMode

from pgb_lightning import PruningConfig, prune
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("ratio", [None, 0.5, 0.88])
def test_flops_are_those_that_torch_counts(model_type: str, ratio: float | None) -> None:
    model = classifier(model_type, attn_implementation="eager")
    if ratio is not None:
        prune(model, batches(4), PruningConfig(pruning_ratio=ratio))
    encoder = find_encoder(model)
    cost = encoder_cost(encoder, length=7)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = torch.randn(1, 7, 24)
        for layer in encoder.layers:
            hidden = encoder.run(layer, "ffn", encoder.run(layer, "attention", hidden))
    assert cost.flops == counter.get_total_flops()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_parameters_are_those_of_the_plan(model_type: str) -> None:
    model = classifier(model_type)
    assert encoder_cost(find_encoder(model)).parameters == 3 * (4 * 24 * 24 + 2 * 24 * 96)
    plan = prune(model, batches(4), PruningConfig(pruning_ratio=0.5))
    assert encoder_cost(find_encoder(model)).parameters == plan.kept_parameters
