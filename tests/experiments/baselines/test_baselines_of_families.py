"""Every baseline on every family: fused, gated and shared matrices, grouped keys, and layers that differ."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.families import TINY, tiny_batches, tiny_logits, tiny_model
from helpers.kinds import SUBLAYERS
from torch import nn

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines import Calibrated, make_permanent
from pgb_lightning.experiments.baselines.fisher import collect_fisher, prune_by_fisher
from pgb_lightning.experiments.baselines.kwon import make_mask_plan, prune_heads_and_neurons, rearrange_all, search
from pgb_lightning.experiments.baselines.magnitude import prune_by_magnitude
from pgb_lightning.experiments.baselines.mask_gradients import collect_mask_gradients
from pgb_lightning.experiments.baselines.masks import kept_weights, mask_matrices
from pgb_lightning.experiments.baselines.torch_pruning import (
    check_supported,
    collect_gradients,
    prune_with_torch_pruning,
)

#: Fractions of the weights that the methods can miss: a layer of four is a quarter.
TOLERANCES = {
    "magnitude": 1e-3,
    "fisher": 1e-3,
    "model-pruning": 1e-3,
    "kwon": 0.02,
    "kwon-untuned": 0.02,
    "top-layers": 0.01,
}


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("model_type", TINY)
def test_a_baseline_removes_the_requested_fraction(model_type: str, name: str) -> None:
    model = tiny_model(model_type, **layers_of(model_type, 4))
    encoder = find_encoder(model)
    if name == "top-layers" and len(encoder.order) > len(encoder.layers):
        with pytest.raises(ValueError, match=rf"model_type='{model_type}' runs \d layer\(s\) 4 times"):
            Calibrated(model, tiny_batches()).prune(name, model, 0.5)
        return
    dense, total = tiny_logits(model), kept_weights(encoder)
    assert total == sum(linear.weight.numel() for _, linear in encoder.linears())
    removed = Calibrated(model, tiny_batches()).prune(name, model, 0.5)
    assert removed == pytest.approx(0.5, abs=TOLERANCES[name])
    assert 1 - kept_weights(encoder) / total == removed
    after = tiny_logits(model)
    assert after.isfinite().all()
    assert (after - dense).abs().max() > 1e-3
    model.train()(**tiny_batches(1)[0]).loss.backward()
    make_permanent(model)
    torch.testing.assert_close(tiny_logits(model), after)


@pytest.mark.parametrize("model_type", TINY)
def test_the_smallest_weights_of_all_matrices_are_masked(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    before = {key: linear.weight.detach().clone() for key, linear in encoder.linears()}
    bound = torch.cat([weight.abs().flatten() for weight in before.values()]).quantile(0.7)
    prune_by_magnitude(model, None, 0.7)
    make_permanent(model)
    for key, linear in encoder.linears():
        assert torch.equal(linear.weight, before[key].masked_fill(before[key].abs() < bound, 0))


@pytest.mark.parametrize("model_type", TINY)
def test_the_weights_of_least_importance_are_masked(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder, found = find_encoder(model), collect_fisher(model.eval(), tiny_batches())
    before = {key: linear.weight.detach().T.clone() for key, linear in encoder.linears()}
    importances = {key: weight.square() * found[key] for key, weight in before.items()}
    bound = torch.cat([importance.flatten() for importance in importances.values()]).quantile(0.7)
    prune_by_fisher(model, found, 0.7)
    make_permanent(model)
    for key, linear in encoder.linears():
        assert torch.equal(linear.weight.T, before[key].masked_fill(importances[key] < bound, 0))


@pytest.mark.parametrize("model_type", TINY)
def test_each_matrix_keeps_its_own_fraction(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    importances = {key: linear.weight.detach().T.square().clone() for key, linear in encoder.linears()}
    fractions = {key: 0.25 * (number % 5) for number, key in enumerate(importances)}
    mask_matrices(encoder, importances, fractions)
    make_permanent(model)
    for key, linear in encoder.linears():
        kept = linear.weight.T != 0
        assert kept.float().mean() == pytest.approx(fractions[key], abs=1e-3)
        if 0 < fractions[key] < 1:
            assert importances[key][kept].min() >= importances[key][~kept].max()


@pytest.mark.parametrize("model_type", TINY)
def test_mask_gradients_equal_those_of_explicit_masks(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    found = collect_mask_gradients(model, tiny_batches(2))
    sample = {name: value[3:4] for name, value in tiny_batches(2)[1].items()}  # row 8 + 3
    for (layer, name), gradients in found.gradients.items():
        unit = encoder.head_group if name == "attention" else 1
        assert gradients.shape == (16, encoder.inner_size(name) // unit)
        mask = torch.ones(gradients.shape[1], requires_grad=True)
        closing = encoder.matrix(layer, SUBLAYERS[name][-1])
        handle = closing.register_forward_pre_hook(lambda _, args, m=mask, u=unit: args[0] * m.repeat_interleave(u))  # type: ignore[misc]
        model(**sample).loss.backward()
        handle.remove()
        torch.testing.assert_close(gradients[11].float(), mask.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model_type", TINY)
def test_without_tuning_it_equals_the_dense_model_with_zero_masks(model_type: str) -> None:
    model = tiny_model(model_type)
    masked = copy.deepcopy(model)
    encoder = find_encoder(masked)
    found = collect_mask_gradients(model, tiny_batches())
    kept = rearrange_all(found, search(encoder, found, 0.4))
    assert make_mask_plan(encoder, kept).pruning_ratio == pytest.approx(0.4, abs=0.02)
    prune_heads_and_neurons(model, found, 0.4, tune=False)
    with torch.no_grad():
        for (layer, name), units in kept.items():
            weight = encoder.matrix(layer, SUBLAYERS[name][-1]).weight
            unit = encoder.head_group if name == "attention" else 1
            mask = torch.zeros(weight.shape[1] // unit)  # type: ignore[union-attr]
            mask[units] = 1
            weight.mul_(mask.repeat_interleave(unit))  # type: ignore[operator]
    torch.testing.assert_close(tiny_logits(model), tiny_logits(masked))


@pytest.mark.parametrize("model_type", TINY)
def test_tuning_reduces_the_difference_from_the_dense_model(model_type: str) -> None:
    dense = tiny_model(model_type)
    data = tiny_batches(6)
    found = collect_mask_gradients(dense, data)
    errors = []
    for tune in (True, False):
        model = copy.deepcopy(dense)
        prune_heads_and_neurons(model, found, 0.5, tune=tune)
        errors.append(float(nn.functional.mse_loss(hidden(model), hidden(dense))))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("model_type", TINY)
def test_torch_pruning_prunes_a_family_or_refuses_it(model_type: str, narrow: bool) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    if not is_supported(encoder):
        with pytest.raises(ValueError, match=rf"model_type='{encoder.model_type}' is not supported"):
            collect_gradients(model, [])  # before any batch is read
        return
    pytest.importorskip("torch_pruning", reason="the baseline is optional: pip install torch-pruning")
    total = kept_weights(encoder)
    found = collect_gradients(model, tiny_batches())
    if narrow and model_type == "roc_bert":  # joins three embeddings, of which the package loses track
        with pytest.raises(ValueError, match=r"model_type='roc_bert' .*Use torch-pruning-inside"):
            prune_with_torch_pruning(model, found, 0.5, narrow)
        return
    prune_with_torch_pruning(model, found, 0.5, narrow)
    assert kept_weights(encoder) / total == pytest.approx(0.5, abs=0.05)
    assert narrow or encoder.matrix(0, "W2").out_features == encoder.hidden_size
    assert tiny_logits(model).isfinite().all()


@pytest.mark.parametrize(("model_type", "reason"), [("modernbert", "several matrices"), ("deberta-v2", "follow")])
def test_torch_pruning_says_why_it_refuses(model_type: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"{model_type}.*{reason}"):
        check_supported(find_encoder(tiny_model(model_type)))


def is_supported(encoder: Encoder) -> bool:
    """Return whether the package can prune an encoder."""
    try:
        check_supported(encoder)
    except ValueError:
        return False
    return True


def hidden(model: nn.Module) -> torch.Tensor:
    """Return the encoder's output at real tokens."""
    encoder, rows = find_encoder(model).model, []
    with torch.no_grad():
        for batch in tiny_batches(6):
            states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
            rows.append(states[batch["attention_mask"] > 0])
    return torch.cat(rows)


def layers_of(model_type: str, count: int) -> dict[str, int]:
    """Return the setting for a number of layers."""
    return {"n_layers" if model_type == "distilbert" else "num_hidden_layers": count}
