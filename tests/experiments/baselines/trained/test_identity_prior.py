"""SNIP of Lin et al.: norms of residual mappings, the bound of the spectrum, and the prior."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.mask_training import LARGE, MODEL_TYPES, fit, has_no_trace, logits, module_of

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.trained.identity_prior import (
    IdentityPrior,
    IdentityPriorSettings,
    SpectralBound,
    head_norms,
)
from pgb_lightning.surgery.dense_twin import dense_twin


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_target_is_met_and_nothing_is_left_behind(tiny_model_folder: Callable[..., Path], model_type: str) -> None:
    heads = "num_attention_heads" if model_type == "bert" else "n_heads"
    module = module_of(tiny_model_folder(model_type, **LARGE, **{heads: 24}))
    assert fit(module, IdentityPrior(0.5), steps=4) == pytest.approx(0.5, abs=0.0105)
    assert has_no_trace(module)
    after = logits(module)
    module.model = dense_twin(module.model)
    torch.testing.assert_close(logits(module), after, atol=1e-4, rtol=1e-4)


def test_the_norm_of_a_head_is_that_of_what_it_adds() -> None:
    generator = torch.Generator().manual_seed(0)
    read, weight = torch.randn(2, 3, 12, generator=generator), torch.randn(8, 12, generator=generator)
    norms = head_norms(read, weight, heads=4)
    for head in range(4):
        features = slice(3 * head, 3 * head + 3)
        added = read[..., features] @ weight[:, features].T
        torch.testing.assert_close(norms[..., head], added.square().mean(-1).sqrt())


def test_the_spectrum_stays_within_its_bound_and_smaller_matrices_are_not_changed() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 9)
    bound = SpectralBound(weight)
    largest = torch.linalg.matrix_norm(weight, 2)
    smaller = 0.5 * weight
    bound.apply(smaller)
    assert torch.equal(smaller, 0.5 * weight)
    for _ in range(30):
        weight += 0.1 * torch.randn(6, 9)
        bound.apply(weight)
    for _ in range(5):  # the power method converges
        bound.apply(weight)
    assert torch.linalg.matrix_norm(weight, 2) <= 1.02 * largest


def test_the_penalty_draws_mappings_to_zero(tiny_model_folder: Callable[..., Path]) -> None:
    norms = {}
    for penalty in (0.0, 1.0):
        callback = IdentityPrior(0.1, IdentityPriorSettings(penalty=penalty, decay=0.5, begin=0.98, end=0.99))
        fit(module_of(tiny_model_folder("bert", **LARGE)), callback, steps=10)
        norms[penalty] = sum(float(norm.sum()) for norm in callback.norms.values())
    assert norms[1.0] < 0.95 * norms[0.0]


def test_the_smallest_mapping_is_removed_first(tiny_model_folder: Callable[..., Path]) -> None:
    module = module_of(tiny_model_folder("bert", **LARGE))
    encoder = find_encoder(module)
    with torch.no_grad():
        encoder.matrix(1, "W2").weight.mul_(1e-3)  # type: ignore[operator, union-attr]
        encoder.matrix(1, "W2").bias.zero_()  # type: ignore[operator, union-attr]
    fit(module, IdentityPrior(0.25), steps=4)  # a feed-forward network has a quarter of the weights
    assert encoder.is_dropped(1, "ffn")
    assert not encoder.is_dropped(0, "ffn")
