"""Finding the encoder in a module, and the errors if there is none or more than one."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from pgb_lightning.encoders.families import FAMILIES, register
from pgb_lightning.encoders.find import find_encoder, find_encoders


class Holder(nn.Module):
    """A module with models among its attributes."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        for name, model in models.items():
            setattr(self, name, model)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_running_the_sublayers_one_by_one_is_running_the_layer(model_type: str) -> None:
    encoder = find_encoder(classifier(model_type))
    hidden = torch.randn(2, 5, 24)
    seen: list[Tensor] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    encoder.layers[0].register_forward_pre_hook(lambda _, args: (hidden, *args[1:]))
    encoder.model(input_ids=torch.full((2, 5), 3))
    for layer, expected in zip(encoder.layers, seen, strict=True):
        hidden = encoder.run(layer, "ffn", encoder.run(layer, "attention", hidden))
        torch.testing.assert_close(hidden, expected, rtol=0, atol=0)


def test_the_encoder_is_found_wherever_it_is() -> None:
    holder = Holder(head=nn.Linear(2, 2), inner=Holder(net=classifier("roberta")))
    encoder = find_encoder(holder)
    assert (encoder.name, encoder.model_type) == ("inner.net.roberta", "roberta")
    assert encoder.model is holder.inner.net.roberta


@pytest.mark.parametrize("name", ["left", "left.bert"])
def test_of_two_encoders_one_is_named(name: str) -> None:
    holder = Holder(left=classifier(), right=classifier("distilbert"))
    with pytest.raises(ValueError, match=r"2 encoders.* encoder=.* 'left.bert', 'right.distilbert'"):
        find_encoder(holder)
    assert find_encoder(holder, name).model is holder.left.bert
    assert find_encoder(holder, name).name == "left.bert"


def test_a_wrong_name_lists_the_encoders_there_are() -> None:
    with pytest.raises(ValueError, match=r"encoder='net.bart' .*'net.bert'"):
        find_encoder(Holder(net=classifier()), "net.bart")


def test_a_missing_encoder_and_an_unsupported_one_have_different_errors() -> None:
    with pytest.raises(ValueError, match="no transformers encoder"):
        find_encoder(Holder(net=nn.Linear(2, 2)))
    decoder = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    with pytest.raises(ValueError, match=r"'gpt2'.* bert, .*distilbert"):
        find_encoder(Holder(net=decoder))


def test_a_model_with_a_head_is_not_a_second_encoder() -> None:
    model = classifier()
    assert [encoder.name for encoder in find_encoders(model)] == ["bert"]
    assert model(**batches(1)[0]).loss.isfinite()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_input_of_the_longest_length_runs_and_a_longer_one_does_not(model_type: str) -> None:
    encoder = find_encoder(classifier(model_type))
    tokens = torch.full((1, encoder.max_length + 1), 3)
    assert encoder.model(tokens[:, 1:]).last_hidden_state.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        encoder.model(tokens)


def test_registering_a_family() -> None:
    with pytest.raises(ValueError, match="model_type='bert'"):
        register("bert", FAMILIES["distilbert"])
    with pytest.raises(ValueError, match="model_type=''"):
        register("", FAMILIES["bert"])
    with pytest.raises(TypeError, match="family=None"):
        register("x", None)  # type: ignore[arg-type]
    register("bert", FAMILIES["bert"])
    try:
        register("my-bert", FAMILIES["bert"])
        model = classifier()
        model.bert.config.model_type = "my-bert"
        assert find_encoder(model).model_type == "my-bert"
    finally:
        del FAMILIES["my-bert"]
