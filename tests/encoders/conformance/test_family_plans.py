"""A pruned encoder computes what its plan says: the dense encoder with zeros for the weights that are removed."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Mapping

import pytest
import torch
from helpers.families import DIFFERENT, TINY, tiny_batches, tiny_logits, tiny_model
from helpers.heads import removing
from helpers.plans import masked, random_plan
from torch import nn

from pgb_lightning import PruningPlan, apply_plan, dense_twin
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import MATRICES, SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.fingerprint import fingerprint
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.surgery.checks import matches

BATCHES = tiny_batches(1, seed=5) + tiny_batches(1, seed=6, padding="left") + tiny_batches(1, seed=7, padding="none")

#: Each family, and more seeds for those that differ in what runs.
SEEDS = [*((name, 0) for name in TINY), *((name, 1) for name in DIFFERENT)]

#: What is removed of every layer.
REMOVED: dict[str, Collection[str]] = {
    "attention": SUBLAYERS["attention"],
    "ffn": SUBLAYERS["ffn"],
    "everything": MATRICES,
    "Q": "Q",
    "K": "K",
    "Q and K": "QK",
}


def check(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Apply a plan, compare with the dense model with zeros and with the twin, and return the pruned model."""
    expected, dense = tiny_logits(masked(model, plan), BATCHES), tiny_logits(model, BATCHES)
    pruned = copy.deepcopy(model)
    apply_plan(pruned, plan)
    found = tiny_logits(pruned, BATCHES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(tiny_logits(dense_twin(pruned), BATCHES), found, rtol=0, atol=1e-4)
    if plan.kept_parameters < plan.total_parameters:
        assert float((expected - dense).abs().max()) > 1e-3  # else the comparison would show nothing
    assert parameters_without_gradient(pruned) <= parameters_without_gradient(model)
    assert matches(find_encoder(pruned), plan)
    assert matches(find_encoder(pruned), PruningPlan.from_json(plan.to_json()))
    return pruned


@pytest.mark.parametrize(("model_type", "seed"), SEEDS)
def test_narrowing_is_setting_weights_to_zero(model_type: str, seed: int) -> None:
    """Heads that are mixed, which no shape shows, have other outputs."""
    model = tiny_model(model_type, seed=seed)
    encoder = find_encoder(model)
    plan = random_plan(encoder, random.Random(f"{model_type} {seed}"), ("narrow",))
    pruned = find_encoder(check(model, plan))
    for layer in range(len(encoder.layers)):
        for kinds in encoder.sublayers.values():
            rows = plan.matrix(layer, kinds[-1]).input_index
            assert rows is not None
            assert as_matrix(pruned.matrix(layer, kinds[-1])).in_features == len(rows[0])


@pytest.mark.parametrize(("model_type", "seed"), SEEDS)
def test_plans_of_all_forms(model_type: str, seed: int) -> None:
    model = tiny_model(model_type, seed=seed)
    plan = random_plan(find_encoder(model), random.Random(f"{model_type} all {seed}"))
    pruned = check(model, plan)
    assert not matches(find_encoder(model), plan)
    other = random_plan(find_encoder(model), random.Random(f"{model_type} other {seed}"))
    assert not matches(find_encoder(pruned), other)


@pytest.mark.parametrize("removed", REMOVED)
@pytest.mark.parametrize("model_type", DIFFERENT)
def test_matrices_that_are_removed_everywhere(model_type: str, removed: str) -> None:
    model = tiny_model(model_type)
    check(model, removing(model, everywhere(find_encoder(model), REMOVED[removed])))


def everywhere(encoder: Encoder, removed: Collection[str]) -> Mapping[int, Collection[str]]:
    return dict.fromkeys(range(len(encoder.layers)), removed)


def parameters_without_gradient(model: nn.Module) -> set[str]:
    """Return the trainable parameters that the loss does not depend on; ``DistributedDataParallel`` accepts none."""
    trained = copy.deepcopy(model).train()
    trained(**BATCHES[0]).loss.backward()
    return {
        name for name, parameter in trained.named_parameters() if parameter.requires_grad and parameter.grad is None
    }


@pytest.mark.parametrize("model_type", TINY)
def test_the_fingerprint_depends_on_every_matrix(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    seen = {fingerprint(encoder)}
    assert seen == {fingerprint(find_encoder(tiny_model(model_type)))}
    with torch.no_grad():
        for (layer, kind), linear in encoder.linears():
            linear.weight[-1, -1] += 1e-3
            encoder.store(layer, kind, linear)
            seen.add(fingerprint(encoder))
        assert len(seen) == 1 + len(encoder.matrices) * len(encoder.layers)
        model.get_input_embeddings().weight.add_(1)
    assert fingerprint(encoder) in seen
