"""Sublayers that are run one by one compute what the model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.families import INCLUDED, TINY, registered, tiny_batches, tiny_config, tiny_model
from torch import Tensor

from pgb_lightning.calibration import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder


def test_every_registered_family_has_a_tiny_configuration() -> None:
    """Without one, none of the tests of this folder would run on the family."""
    assert {*INCLUDED} == {*map(registered, TINY)}
    assert {*INCLUDED} <= {*TINY}


@pytest.mark.parametrize("model_type", TINY)
def test_the_matrices_are_those_of_the_configuration(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    assert encoder.model_type == registered(model_type)
    assert encoder.family is FAMILIES[registered(model_type)]
    found = {key: (linear.in_features, linear.out_features) for key, linear in encoder.linears()}
    sizes = {kind: encoder.inner_size(name) for name, kinds in encoder.sublayers.items() for kind in kinds}
    layers = range(len(encoder.layers))
    assert found == {(n, kind): encoder.matrix_size(kind, sizes[kind]) for n in layers for kind in encoder.matrices}
    assert {encoder.matrix_size(kind, sizes[kind])[kind in ("O", "W2")] for kind in encoder.matrices} == {48}
    assert len(encoder.order) == tiny_config(model_type).num_hidden_layers
    assert {*encoder.order} == {*layers}


@pytest.mark.parametrize("padding", ["right", "left", "none"])
@pytest.mark.parametrize("model_type", TINY)
def test_running_the_sublayers_one_by_one_is_running_the_layers(model_type: str, padding: str) -> None:
    model = tiny_model(model_type)
    # Some columns are padding in every sentence, which calibration does not store.
    batches = tiny_batches(2, padding=padding)
    if padding != "none":
        batches[1]["attention_mask"][:, slice(-3, None) if padding == "right" else slice(3)] = 0
    check_sublayers(model, batches)


@pytest.mark.parametrize("model_type", TINY)
def test_the_longest_input(model_type: str) -> None:
    model = tiny_model(model_type)
    length = find_encoder(model).max_length
    assert length >= 48
    check_sublayers(model, tiny_batches(1, size=2, length=length))


def check_sublayers(model: Any, batches: list[dict[str, Tensor]]) -> None:
    """Compare the sublayers of each layer, with the arguments that calibration records, with the layers themselves."""
    encoder = find_encoder(model)
    expected = layer_outputs(encoder, model, batches)
    calibration = calibrate(encoder, batches, model_loss(model))
    assert len(calibration.inputs) == len(batches)
    with torch.no_grad():
        for given, outputs, batch in zip(calibration.inputs, expected, batches, strict=True):
            assert len(given.arguments) == len(outputs) == len(encoder.order)
            hidden = given.hidden
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            for step, (number, output) in enumerate(zip(encoder.order, outputs, strict=True)):
                for sublayer in SUBLAYERS:
                    hidden = encoder.run(encoder.layers[number], sublayer, hidden, given.arguments[step])
                torch.testing.assert_close(hidden[given.tokens], output[real], rtol=1e-5, atol=1e-5)
                hidden = encoder.pass_on(step, given.hidden, hidden, given.tokens)


@torch.no_grad()
def layer_outputs(encoder: Encoder, model: Any, batches: list[dict[str, Tensor]]) -> list[list[Tensor]]:
    """Return for each batch the hidden states after each run of a layer, (B, S, d)."""
    outputs: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in encoder.layers
    ]
    found = []
    for batch in batches:
        outputs.clear()
        model(**batch)
        found.append(list(outputs))
    for handle in handles:
        handle.remove()
    return found
