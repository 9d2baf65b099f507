"""The models of a benchmark have the pruning ratios in their names."""

from __future__ import annotations

import pytest
import torch
from helpers.families import TINY, tiny_logits, tiny_model
from helpers.tiny import MODEL_TYPES, classifier
from torch import nn

from pgb_lightning.benchmark.models import narrow_plan, paper_plan, pruned_models, random_model, uniform_group_plan
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.linear import GroupedLinear


@pytest.mark.parametrize(
    ("model_type", "ratio"), [*((name, 0.5) for name in MODEL_TYPES), ("bert", 0.3), ("bert", 0.8)]
)
def test_plans_meet_their_ratio(model_type: str, ratio: float) -> None:
    encoder = find_encoder(classifier(model_type))
    assert abs(paper_plan(encoder, ratio).pruning_ratio - ratio) < 0.03
    narrow = narrow_plan(encoder, ratio)
    assert abs(narrow.pruning_ratio - ratio) < 0.03
    assert all(matrix.num_groups == 1 for matrix in narrow.matrices)


@pytest.mark.parametrize("model_type", TINY)
def test_plans_of_every_family_meet_their_ratio(model_type: str) -> None:
    model = tiny_model(model_type)
    models = pruned_models(model, [0.5], [2])
    encoders = {name: find_encoder(each) for name, each in models.items()}
    total = encoder_cost(encoders["dense"]).parameters
    for name, encoder in encoders.items():
        kept = encoder_cost(encoder).parameters / total
        assert kept == pytest.approx(1 if name == "dense" else 0.5, abs=0.03), name
        assert tiny_logits(models[name]).isfinite().all()
    plans = [narrow_plan(encoders["dense"], ratio) for ratio in (0.3, 0.7)]
    assert [plan.pruning_ratio for plan in plans] == pytest.approx([0.3, 0.7], abs=0.03)


@pytest.mark.slow
def test_models_of_base_size() -> None:
    models = pruned_models(random_model("bert", 1), [0.5], [3])
    assert list(models) == ["dense", "groups 0.5", "narrow 0.5", "G = 3", "G = 3, shared neurons"]
    layer = {name: find_encoder(model).layers[0] for name, model in models.items()}
    assert any(isinstance(module, GroupedLinear) for module in layer["groups 0.5"].modules())
    assert not any(isinstance(module, GroupedLinear) for module in layer["narrow 0.5"].modules())
    w1 = find_encoder(models["narrow 0.5"]).matrix(0, "W1")
    assert isinstance(w1, nn.Linear)
    assert w1.weight.shape == (1536, 768)
    layers = [module for module in layer["G = 3"].modules() if isinstance(module, GroupedLinear)]
    assert [module.num_groups for module in layers] == [3] * 6
    kept = find_encoder(models["dense"]).matrix(0, "W1").weight[:1536]
    assert torch.equal(w1.weight, kept)


def test_uniform_groups_are_random() -> None:
    encoder = find_encoder(classifier())
    for matrix in uniform_group_plan(encoder, 2).matrices:
        assert matrix.num_groups == 2
        assert matrix.kept_share == 0.5
        assert matrix.input_index is not None
        assert matrix.input_index[0] != tuple(range(matrix.rows // 2))
    w1, w2 = uniform_group_plan(encoder, 2, shared_neurons=True).matrices[4:6]
    assert (w1.kind, w2.kind) == ("W1", "W2")
    assert w1.output_index == w2.input_index != tuple(map(tuple, torch.arange(96).view(2, -1).tolist()))
    w1, w3, w2 = uniform_group_plan(find_encoder(tiny_model("modernbert")), 2, shared_neurons=True).matrices[4:7]
    assert (w1.kind, w3.kind, w2.kind) == ("W1", "W3", "W2")
    assert w1.output_index == w3.output_index == w2.input_index
    assert w1.input_index != w3.input_index
    with pytest.raises(ValueError, match=r"num_groups=5 .*24 x 24"):
        uniform_group_plan(encoder, 5)


def test_an_unsupported_model_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"architecture='bort' .*bert, .*ModernBERT-base"):
        random_model("bort", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("ModernBERT-base", (1152, 768)), ("distilbert", (3072, 768))])
def test_a_published_encoder_or_the_base_size_of_a_family(name: str, shape: tuple[int, int]) -> None:
    encoder = find_encoder(random_model(name, 1, vocab_size=99, pad_token_id=0))
    assert len(encoder.layers) == 1
    w1 = encoder.matrix(0, "W1")
    assert isinstance(w1, nn.Linear)
    assert w1.weight.shape == shape
