"""What a calibration batch costs: matrix products, products in double precision, and waits for the device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers.counters import double_products, synchronizations
from helpers.tiny import batches, classifier
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pgb_lightning import PruningConfig
from pgb_lightning.calibration.collect import Calibration, calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.config import FISHER_SAMPLES
from pgb_lightning.encoders.find import find_encoder

Batch = dict[str, Tensor]


def full_batches(count: int) -> list[Batch]:
    """Make batches without padding."""
    return [{**batch, "attention_mask": torch.ones_like(batch["attention_mask"])} for batch in batches(count)]


def collect(data: list[Batch], **limits: Any) -> Calibration:
    model = classifier(layers=2)
    return calibrate(find_encoder(model), data, model_loss(model), moments=True, **limits)


def flops_of_calibration(count: int) -> int:
    """Count the FLOPs of a calibration of which only the first batch is used for F and the moments of inputs."""
    with FlopCounterMode(display=False) as counter:
        collect(full_batches(count), max_tokens=1, fisher_samples=1)
    return counter.get_total_flops()


def test_a_batch_costs_three_quarters_of_a_forward_and_backward_pass() -> None:
    """Two thirds are the forward pass and the gradients of inputs; the rest is for the gradients' moments."""
    model, data = classifier(layers=2), full_batches(4)
    with FlopCounterMode(display=False) as counter:
        for batch in data:
            model(**batch).loss.backward()
    assert flops_of_calibration(6) - flops_of_calibration(2) <= 0.75 * counter.get_total_flops()


@pytest.mark.parametrize("padded", [True, False])
def test_the_host_waits_twice_for_a_batch(padded: bool) -> None:
    """Once for the positions of real tokens, and once for all that must be known after the backward pass."""
    make = batches if padded else full_batches

    def count(number: int) -> Counter[str]:
        with synchronizations() as found:
            collect(make(number), max_tokens=1, fisher_samples=1)
        return found

    model = classifier(layers=2)
    with synchronizations() as own:
        for batch in make(4):
            model(**batch)
    waits = count(6)
    waits.subtract(count(2))
    waits.subtract(own)
    assert +waits == Counter({"aten.nonzero": 4, "tolist": 4})


def test_no_product_is_in_double_precision() -> None:
    with double_products() as found:
        collect(batches(3))
    assert not found


def test_after_enough_samples_gradients_are_not_squared_any_more() -> None:
    data = batches(4)
    limited, first, everything = collect(data, fisher_samples=9), collect(data[:2]), collect(data)
    assert limited.num_samples == limited.num_with_gradient == 32
    for key, fisher in limited.fisher.items():
        assert torch.equal(fisher, first.fisher[key])
        assert torch.equal(limited.moments.gradients[key], everything.moments.gradients[key])
    for key, covariance in limited.moments.inputs.items():
        assert torch.equal(covariance, everything.moments.inputs[key])


def test_samples_without_a_gradient_are_not_enough() -> None:
    """Else F could be zero though later samples have a gradient."""
    model, data = classifier(layers=1), batches(3)
    loss, calls = model_loss(model), iter(range(3))

    def constant_at_first(batch: Batch) -> Tensor:
        return loss(batch) * (next(calls) > 0)

    with pytest.warns(UserWarning, match="16 of 24"):
        found = calibrate(find_encoder(model), data, constant_at_first, fisher_samples=8)
    exact = calibrate(find_encoder(model), data[1:2], loss).fisher
    for key, fisher in found.fisher.items():
        torch.testing.assert_close(fisher, exact[key] / 2)  # the mean over both batches


def test_processes_with_unequal_numbers_of_squared_samples_add_up() -> None:
    data = batches(3)
    model = classifier(layers=1)

    def fisher(shard: list[Batch], all_reduce: Any = lambda tensor: tensor) -> dict[Any, Tensor]:
        return calibrate(find_encoder(model), shard, model_loss(model), all_reduce, fisher_samples=9).fisher

    sent: list[list[Tensor]] = [[], []]
    for rank, shard in enumerate((data[:1], data[1:])):
        fisher(shard, lambda tensor, rank=rank: sent[rank].append(tensor.clone()) or tensor)
    totals = iter([a + b for a, b in zip(*sent, strict=True)])
    together = fisher(data[:1], lambda tensor: next(totals))
    alone = calibrate(find_encoder(model), data, model_loss(model)).fisher
    for key, value in together.items():
        torch.testing.assert_close(value, alone[key])


def test_the_search_over_shapes_squares_gradients_of_some_samples_and_algorithm_1_those_of_all() -> None:
    assert PruningConfig().fisher_samples == FISHER_SAMPLES == 256
    for preset in ("balanced", "paper"):
        assert PruningConfig.from_preset(preset).fisher_samples == float("inf")
