"""Moments accumulated over batches and processes equal those of all vectors."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import batches, classifier

from pgb_lightning.calibration.collect import SecondMoments, calibrate
from pgb_lightning.calibration.moments import STRIPE, Covariance, add_gram, symmetric_from_lower
from pgb_lightning.encoders.find import find_encoder


def test_covariance_accumulated_in_batches_is_exact() -> None:
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) @ torch.randn(5, 5) + 1000
    summed = Covariance(5)
    for part in x.split(37):
        summed.add(part)
    summed.add(x[:0])
    torch.testing.assert_close(summed.finish(), torch.cov(x.double().T, correction=0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(7, 5), (9, STRIPE), (9, 2 * STRIPE + 44), (3, 9, STRIPE + 1)])
def test_the_lower_triangle_of_a_gram_matrix_is_completed(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.ones(*shape[:-2], shape[-1], shape[-1], dtype=torch.float64)
    gram = start.clone()
    add_gram(gram, x)
    torch.testing.assert_close(symmetric_from_lower(gram), start + x.transpose(-1, -2) @ x)


def test_processes_with_unequal_shards_add_up() -> None:
    model = classifier(layers=2)
    data = batches(5)
    encoder = find_encoder(model)

    def collect(shard: list, all_reduce=lambda tensor: tensor) -> SecondMoments:
        found = calibrate(encoder, shard, lambda batch: model(**batch).loss, all_reduce, moments=True).moments
        assert found is not None
        return found

    sent: list[list[torch.Tensor]] = [[], []]
    for rank, shard in enumerate((data[:2], data[2:])):
        collect(shard, lambda tensor, rank=rank: sent[rank].append(tensor.clone()) or tensor)
    assert len(sent[0]) == len(sent[1])
    totals = iter([a + b for a, b in zip(*sent, strict=True)])
    together = collect(data[:2], lambda tensor: next(totals))
    alone = collect(data)
    for name in ("inputs", "gradients"):
        for key, value in getattr(alone, name).items():
            torch.testing.assert_close(getattr(together, name)[key], value, rtol=1e-4, atol=1e-7)


def test_input_moments_stop_at_max_tokens_and_gradient_moments_do_not() -> None:
    model = classifier(layers=1)
    data = batches(4)
    encoder = find_encoder(model)
    first = int(data[0]["attention_mask"].sum())
    limited = calibrate(encoder, data, lambda batch: model(**batch).loss, max_tokens=first, moments=True).moments
    everything = calibrate(encoder, data, lambda batch: model(**batch).loss, moments=True).moments
    assert limited is not None
    assert everything is not None
    x = model.bert.embeddings(data[0]["input_ids"])[data[0]["attention_mask"].bool()]
    torch.testing.assert_close(
        limited.inputs[0, "Q"], torch.cov(x.detach().double().T, correction=0), rtol=1e-4, atol=1e-5
    )
    assert sorted(limited.inputs) == [(0, "O"), (0, "Q"), (0, "W1"), (0, "W2")]
    assert all(torch.equal(limited.gradients[key], value) for key, value in everything.gradients.items())
    assert {kind: tuple(value.shape) for (_, kind), value in everything.gradients.items()} == {
        "Q": (24,),
        "K": (24,),
        "V": (24,),
        "O": (24, 24),
        "W1": (96,),
        "W2": (24, 24),
    }


def test_moments_are_collected_only_on_request() -> None:
    model = classifier(layers=1)
    assert calibrate(find_encoder(model), batches(1), lambda batch: model(**batch).loss).moments is None


@pytest.mark.parametrize("tokens", [0, 1])
def test_fewer_than_two_vectors_have_zero_covariance(tokens: int) -> None:
    summed = Covariance(3)
    summed.add(torch.randn(tokens, 3))
    torch.testing.assert_close(summed.finish(), torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=1e-6)
