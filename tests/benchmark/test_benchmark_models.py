"""The models of a benchmark have the ratios that they are named after."""

from __future__ import annotations

import pytest
import torch
from tiny import MODEL_TYPES, classifier
from torch import nn

from pgb_lightning.architectures import find_encoder
from pgb_lightning.benchmark.models import grouped_plan, narrow_plan, random_models
from pgb_lightning.linear import GroupedLinear


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_plans_meet_their_ratio(model_type: str, ratio: float) -> None:
    encoder = find_encoder(classifier(model_type))
    assert abs(grouped_plan(encoder, ratio).pruning_ratio - ratio) < 0.03
    narrow = narrow_plan(encoder, ratio)
    assert abs(narrow.pruning_ratio - ratio) < 0.03
    assert all(matrix.num_groups == 1 for matrix in narrow.matrices)


def test_models_of_base_size() -> None:
    models = random_models("bert", 1, [0.5])
    assert list(models) == ["dense", "groups 0.5", "narrow 0.5"]
    layer = {name: find_encoder(model).layers[0] for name, model in models.items()}
    assert any(isinstance(module, GroupedLinear) for module in layer["groups 0.5"].modules())
    assert not any(isinstance(module, GroupedLinear) for module in layer["narrow 0.5"].modules())
    w1 = find_encoder(models["narrow 0.5"]).matrix(0, "W1")
    assert isinstance(w1, nn.Linear)
    assert w1.weight.shape == (1536, 768)
    kept = find_encoder(models["dense"]).matrix(0, "W1").weight[:1536]
    assert torch.equal(w1.weight, kept)
