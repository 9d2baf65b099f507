"""Feeding tokens in chunks: the same outputs, and together wherever somebody would notice."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier, logits, pruned
from torch import nn

from pgb_lightning import PruningConfig, prune
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.token_chunks import TokenChunks

CHUNKED = [model_type for model_type in MODEL_TYPES if FAMILIES[model_type].tokenwise]


def chunks_of(encoder: Encoder, layer: int = 0) -> TokenChunks:
    assert encoder.family.tokenwise is not None
    path, method = encoder.family.tokenwise
    chunks = getattr(encoder.layers[layer].get_submodule(path), method)
    assert isinstance(chunks, TokenChunks)
    return chunks


def calls_of_w1(encoder: Encoder, hidden: torch.Tensor) -> list[tuple[int, ...]]:
    """Run the feed-forward sublayer and note what W1 was given, without a hook."""
    w1, seen = encoder.matrix(0, "W1"), []
    original = type(w1).forward
    w1.forward = lambda x: (seen.append(tuple(x.shape)), original(w1, x))[1]
    encoder.run(encoder.layers[0], "ffn", hidden)
    del w1.forward
    return seen


@pytest.mark.parametrize("model_type", CHUNKED)
def test_chunks_change_nothing_but_how_many_tokens_go_at_once(model_type: str) -> None:
    model = pruned(model_type)
    whole = logits(model)
    encoder = find_encoder(model)
    for layer in range(len(encoder.layers)):
        chunks_of(encoder, layer).chunk_bytes = 3 * 4 * encoder.matrix(layer, "W1").out_features
    torch.testing.assert_close(logits(model), whole, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        seen = calls_of_w1(encoder, torch.randn(2, 5, 24))
    assert seen == [(3, 24)] * 3 + [(1, 24)]


def small(model_type: str = "bert") -> Encoder:
    encoder = find_encoder(pruned(model_type).eval())
    chunks_of(encoder).chunk_bytes = 3 * 4 * 96
    return encoder


def test_tokens_stay_together_where_gradients_are_recorded() -> None:
    assert calls_of_w1(small(), torch.randn(2, 5, 24)) == [(2, 5, 24)]


@torch.no_grad()
def test_tokens_stay_together_in_training() -> None:
    encoder = small()
    encoder.model.train()
    assert calls_of_w1(encoder, torch.randn(2, 5, 24)) == [(2, 5, 24)]


@torch.no_grad()
def test_hooks_see_all_tokens_at_once() -> None:
    encoder, seen = small(), []
    handle = encoder.matrix(0, "W2").register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    encoder.run(encoder.layers[0], "ffn", torch.randn(2, 5, 24))
    assert seen == [(2, 5, 24)]
    handle.remove()
    assert len(calls_of_w1(encoder, torch.randn(2, 5, 24))) > 1


@pytest.mark.parametrize("model_type", CHUNKED)
def test_copies_and_pickles_run_their_own_weights(model_type: str) -> None:
    model = pruned(model_type)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert chunks_of(find_encoder(other)).owner is not chunks_of(find_encoder(model)).owner
        before = logits(other)
        w2 = find_encoder(other).matrix(0, "W2")
        assert isinstance(w2, nn.Module)
        with torch.no_grad():
            w2.weight.add_(1.0)
        assert not torch.equal(logits(other), before)
        torch.testing.assert_close(logits(model), before)


def replicate(model: nn.Module, change: float) -> nn.Module:
    """Copy a model as ``nn.DataParallel`` does for another device, and change the parameters of the copy."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module.named_children():
            replica.add_module(name, replicas[child])
        for name, parameter in module.named_parameters(recurse=False):
            setattr(replica, name, parameter.detach() + change)
        for name, buffer in module.named_buffers(recurse=False):
            replica.register_buffer(name, buffer)
    return replicas[model]


@pytest.mark.parametrize("model_type", CHUNKED)
def test_replicas_run_their_own_weights(model_type: str) -> None:
    model = pruned(model_type)
    before, found = logits(model), logits(replicate(model, 0.05))
    torch.testing.assert_close(logits(model), before)
    chunks_of(find_encoder(model))  # still there
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    torch.testing.assert_close(found, logits(model))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("model_type", CHUNKED)
@torch.no_grad()
def test_a_traced_model_takes_any_number_of_tokens(model_type: str) -> None:
    model = pruned(model_type, attn_implementation="eager").eval()
    for layer in range(3):
        chunks_of(find_encoder(model), layer).chunk_bytes = 3 * 4 * 96

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=tokens, attention_mask=mask).logits  # type: ignore[no-any-return]

    inputs = [(batch["input_ids"], batch["attention_mask"]) for size in (2, 5) for batch in batches(1, size=size)]
    traced = torch.jit.trace(Logits(), inputs[0])
    for each in inputs:
        torch.testing.assert_close(traced(*each), Logits()(*each))


@pytest.mark.parametrize("model_type", CHUNKED)
def test_a_method_that_was_replaced_before_is_kept(model_type: str) -> None:
    model = classifier(model_type)
    path, method = FAMILIES[model_type].tokenwise or ("", "")
    owner = find_encoder(model).layers[0].get_submodule(path)
    original = getattr(owner, method)
    setattr(owner, method, lambda hidden: 1.5 * original(hidden))
    replaced = getattr(owner, method)
    prune(model, batches(2), PruningConfig(compensation=False))
    assert getattr(owner, method) is replaced
    chunks_of(find_encoder(model), 1)  # other layers have chunks


def test_a_family_without_such_a_method_is_left_alone() -> None:
    encoder = find_encoder(pruned("mpnet"))
    assert not any(isinstance(value, TokenChunks) for m in encoder.model.modules() for value in vars(m).values())
    with torch.no_grad():
        assert calls_of_w1(encoder, torch.randn(2, 5, 24)) == [(2, 5, 24)]
