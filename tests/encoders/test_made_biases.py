"""Dropped sublayers of encoders without biases: a made bias holds their mean output, where a twin can hold it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.families import tiny_batches, tiny_logits, tiny_model
from torch.nn.functional import kl_div

from pgb_lightning import PruningConfig, PruningPlan, apply_plan, dense_twin, follow_state_dict
from pgb_lightning.calibration import Calibration, calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.compensation import compensate
from pgb_lightning.compensation.errors import FitErrors
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.family import Sublayer, sublayer_of
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.huggingface import export_dense, export_huggingface
from pgb_lightning.plan import MatrixPlan
from pgb_lightning.prediction.elimination import add_damping
from pgb_lightning.search.candidates import list_candidates
from pgb_lightning.shapes import Dropped

MADE = ("modernbert", "eurobert")
DROPPED: tuple[tuple[int, Sublayer], ...] = ((0, "attention"), (1, "ffn"))
SETTINGS = {"attention": "attention_bias", "ffn": "mlp_bias"}


def statistics(model: Any, count: int = 4) -> Calibration:
    return calibrate(find_encoder(model), tiny_batches(count), model_loss(model), moments=True)


def closing(encoder: Encoder, layer: int, sublayer: Sublayer) -> torch.nn.Module:
    return encoder.matrix(layer, encoder.sublayers[sublayer][-1])


def plan_without(encoder: Encoder, dropped: tuple[tuple[int, Sublayer], ...]) -> PruningPlan:
    matrices = []
    for layer in range(encoder.num_layers):
        for kind in encoder.matrices:
            index = () if (layer, sublayer_of(kind)) in dropped else None
            size = encoder.matrix_size(kind, encoder.inner_size(sublayer_of(kind)))
            matrices.append(MatrixPlan(layer, kind, *size, index, index))
    return PruningPlan(encoder.model_type, tuple(matrices))


def skewed(model_type: str, seed: int = 0) -> Any:
    """Return a model whose feed-forward sublayers add vectors with a large mean, as trained ones do.

    The gate of every neuron is its input.
    """
    model = tiny_model(model_type, seed=seed)
    encoder = find_encoder(model)
    for layer in range(encoder.num_layers):
        encoder.set_matrices(layer, {"W3": copy.deepcopy(encoder.matrix(layer, "W1"))})
    return model


def without(
    model_type: str, dropped: tuple[tuple[int, Sublayer], ...] = DROPPED, seed: int = 0
) -> tuple[Any, FitErrors]:
    """Return a compensated model without some sublayers, and the errors that are left."""
    model, errors = skewed(model_type, seed), FitErrors()
    encoder, inputs = find_encoder(model), statistics(model, 16).inputs
    compensate(encoder, plan_without(encoder, dropped), inputs, 1e-2, errors=errors)
    return model, errors


@pytest.mark.parametrize("model_type", MADE)
def test_a_made_bias_brings_the_model_nearer_to_the_dense_one(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [key] = dropped = DROPPED[1:]
    unseen, divergences = tiny_batches(4, seed=5), dict[bool, float]()
    models = {True: [without(model_type, dropped, seed) for seed in (0, 1)]}
    monkeypatch.setitem(FAMILIES, model_type, replace(FAMILIES[model_type], bias_settings={}))
    models[False] = [without(model_type, dropped, seed) for seed in (0, 1)]
    for (_, made), (_, none) in zip(models[True], models[False], strict=True):
        assert made.sublayers[key] < none.sublayers[key]
    for is_made, found in models.items():
        pairs = [(tiny_logits(skewed(model_type, n), unseen), tiny_logits(m, unseen)) for n, (m, _) in enumerate(found)]
        dense, pruned = (torch.cat(part).log_softmax(-1) for part in zip(*pairs, strict=True))
        divergences[is_made] = float(kl_div(pruned, dense, reduction="batchmean", log_target=True))
    assert divergences[True] < 0.9 * divergences[False]


@pytest.mark.parametrize("model_type", MADE)
@pytest.mark.parametrize("dropped", [DROPPED[:1], DROPPED[1:], DROPPED])
def test_twins_loaded_models_and_folders_hold_the_constant(
    model_type: str, dropped: tuple[tuple[int, Sublayer], ...], tmp_path: Path
) -> None:
    model, _ = without(model_type, dropped)
    expected, encoder = tiny_logits(model), find_encoder(model)
    for layer, sublayer in dropped:
        assert closing(encoder, layer, sublayer).get_parameter("bias").abs().max() > 0
    twin = dense_twin(model)
    torch.testing.assert_close(tiny_logits(twin), expected)
    for sublayer, setting in SETTINGS.items():
        assert getattr(twin.config, setting) == any(sublayer == name for _, name in dropped)
        assert not getattr(model.config, setting)
    fresh = tiny_model(model_type, seed=3)
    follow_state_dict(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(tiny_logits(fresh), expected)
    export_huggingface(model, tmp_path / "pruned")
    export_dense(model, tmp_path / "dense")
    auto = transformers.AutoModelForSequenceClassification
    folders = [auto.from_pretrained(tmp_path / name) for name in ("pruned", "dense")]
    assert type(folders[1]) is type(model)
    for loaded in (*folders, dense_twin(folders[0])):
        torch.testing.assert_close(tiny_logits(loaded), expected)


@pytest.mark.parametrize("model_type", [*MADE, "nomic_bert"])
def test_the_predicted_loss_of_a_dropped_sublayer_is_that_of_what_is_left(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder, found = find_encoder(model), statistics(model)
    assert found.moments is not None
    for options in list_candidates(encoder, found, PruningConfig(ridge=1e-2, max_groups=1)):
        dropped = next(candidate for candidate in options if isinstance(candidate.shape, Dropped))
        key = (dropped.layer, encoder.sublayers[dropped.sublayer][-1])
        inputs, mean = found.moments.inputs[key].double(), found.moments.means[key].double()
        power = inputs if model_type in MADE else inputs + torch.outer(mean, mean)
        weight = encoder.matrix(*key).get_parameter("weight").detach().T.double()
        outputs = weight.T @ add_damping(power, 1e-2) @ weight
        expected = float((found.moments.gradients[key] * outputs).sum() / 2)
        assert dropped.loss == pytest.approx(expected, rel=1e-4)


def test_nothing_is_left_where_no_setting_gives_biases() -> None:
    model, _ = without("nomic_bert")
    encoder = find_encoder(model)
    assert all(closing(encoder, *key).bias is None for key in DROPPED)
    torch.testing.assert_close(tiny_logits(dense_twin(model)), tiny_logits(model))


@pytest.mark.parametrize("model_type", MADE)
def test_biases_of_the_dense_model_are_used_as_ever(model_type: str) -> None:
    model = tiny_model(model_type, attention_bias=True, mlp_bias=True)
    encoder = find_encoder(model)
    biases = {key: closing(encoder, *key).get_parameter("bias").clone() for key in DROPPED}
    apply_plan(model, plan_without(encoder, DROPPED))
    for (layer, name), bias in biases.items():
        assert torch.equal(closing(encoder, layer, name).get_parameter("bias"), bias)
    torch.testing.assert_close(tiny_logits(dense_twin(model)), tiny_logits(model))


def test_a_head_outside_the_layers_gets_zero_biases_under_the_same_setting(tmp_path: Path) -> None:
    model = tiny_model("eurobert", "MaskedLM")
    apply_plan(model, plan_without(find_encoder(model), DROPPED))
    tokens = tiny_batches(1)[0]["input_ids"]
    twin = dense_twin(model)
    assert model.lm_head.bias is None
    assert torch.equal(twin.lm_head.bias, torch.zeros(twin.config.vocab_size))
    twin.save_pretrained(tmp_path)
    loaded, info = type(twin).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)


def test_made_biases_are_trained_unless_the_encoder_is_frozen() -> None:
    for is_trained in (True, False):
        model = tiny_model("modernbert")
        find_encoder(model).model.requires_grad_(is_trained)
        apply_plan(model, plan_without(find_encoder(model), DROPPED))
        for module in (model, dense_twin(model), copy.deepcopy(model)):
            parameters = dict(find_encoder(module).stack.named_parameters())
            assert parameters["1.mlp.Wo.bias"].requires_grad is is_trained
