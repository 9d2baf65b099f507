"""Calibration refuses data without gradients, says how many samples have one, and leaves skipped batches out."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from helpers.tiny import batches, classifier
from torch import Tensor
from torch.nn import functional

from pgb_lightning import PruningConfig, prune
from pgb_lightning.calibration.collect import Calibration, calibrate
from pgb_lightning.config import PRESETS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import make_plan

Batch = dict[str, Tensor]


def without_gradient(model: Any, kind: str) -> Callable[[Batch], Tensor]:
    """Return a loss that has no gradient in the encoder, on any sample."""
    unused = classifier(seed=1)

    def no_grad(batch: Batch) -> Tensor:
        with torch.no_grad():
            return model(**batch).loss  # type: ignore[no-any-return]

    losses: dict[str, Callable[[Batch], Tensor]] = {
        "met margin": lambda batch: functional.relu(model(**batch).logits.square().mean() - 1e4),
        "saturated": lambda batch: functional.cross_entropy(
            model(**batch).logits * 1e6, model(**batch).logits.detach().argmax(1)
        ),
        "squares underflow": lambda batch: model(**batch).loss * 1e-30,
        "zero": lambda batch: model(**batch).loss * 0,
        "constant": lambda batch: torch.tensor(1.0),
        "detached": lambda batch: model(**batch).loss.detach(),
        "no_grad": no_grad,
        "head only": lambda batch: model.classifier.weight.square().sum() + model(**batch).loss.detach(),
        "other encoder": lambda batch: unused(**batch).loss,
    }
    return losses[kind]


KINDS = (
    "met margin",
    "saturated",
    "squares underflow",
    "zero",
    "constant",
    "detached",
    "no_grad",
    "head only",
    "other encoder",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_no_gradient_on_any_sample_is_refused_before_anything_changes(preset: str, kind: str) -> None:
    model = classifier(layers=2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"No calibration sample has a gradient.*'bert'.*loss=.*calibration_step"):
        prune(model, batches(3), PruningConfig.from_preset(preset), loss=without_gradient(model, kind))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_the_warning_counts_the_samples_with_a_gradient(kind: str) -> None:
    model = classifier(layers=1)
    data = batches(4)
    silent = without_gradient(model, kind)

    def loss(batch: Batch) -> Tensor:
        return silent(batch) if batch is data[2] else model(**batch).loss

    not_run = kind in ("constant", "no_grad", "other encoder")  # no differentiable pass, so no samples to count
    total = 24 if not_run else 32
    with pytest.warns(UserWarning, match=f"24 of {total} calibration samples") as caught:
        statistics = calibrate(find_encoder(model), data, loss, moments=True)
    assert len(caught) == 1
    assert ("1 batch(es)" in str(caught[0].message)) == not_run
    assert (statistics.num_samples, statistics.num_with_gradient) == (total, 24)
    make_plan(find_encoder(model), statistics, PruningConfig())


def test_samples_of_one_batch_are_counted_one_by_one() -> None:
    model = classifier(layers=1)

    def loss(batch: Batch) -> Tensor:
        each = functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")
        return (each * torch.tensor([1.0, 0, 1, 1, 0, 0, 0, 1])).mean()

    with pytest.warns(UserWarning, match="8 of 16 calibration samples"):
        prune(model, batches(2), loss=loss)


def test_gradients_on_all_samples_and_detached_passes_are_no_warning() -> None:
    model = classifier(layers=1)

    def siamese(batch: Batch) -> Tensor:  # as with a target network: only one of two passes has a gradient
        shown, target = (model.bert(batch["input_ids"].roll(i, 1)).pooler_output for i in range(2))
        return functional.mse_loss(shown, target.detach())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (siamese, lambda batch: model(**batch).loss):
            statistics = calibrate(find_encoder(model), batches(2), loss)
            assert (statistics.num_samples, statistics.num_with_gradient) == (16, 16)


@pytest.mark.parametrize("preset", PRESETS)
def test_squares_that_overflow_are_refused(preset: str) -> None:
    model = classifier(layers=1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"NaN or infinity.*squares.*loss="):
        prune(model, batches(2), PruningConfig.from_preset(preset), loss=lambda batch: model(**batch).loss * 1e25)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("preset", PRESETS)
def test_statistics_that_are_all_zero_make_no_plan(preset: str) -> None:
    model = classifier(layers=1)
    encoder, config = find_encoder(model), PruningConfig.from_preset(preset)
    statistics = calibrate(encoder, batches(2), lambda batch: model(**batch).loss, moments=True)
    assert statistics.moments is not None
    for values in (statistics.fisher, statistics.moments.gradients):
        for value in values.values():
            value.zero_()
    with pytest.raises(ValueError, match="all zero"):
        make_plan(encoder, statistics, config)


def equal(first: Calibration, second: Calibration) -> None:
    assert first.num_samples == second.num_samples
    assert all(torch.equal(value, second.fisher[key]) for key, value in first.fisher.items())
    for one, two in zip(first.inputs, second.inputs, strict=True):
        assert torch.equal(one.hidden, two.hidden)
    assert first.moments is not None
    assert second.moments is not None
    for name in ("inputs", "gradients"):
        for key, value in getattr(first.moments, name).items():
            assert torch.equal(value, getattr(second.moments, name)[key])


def test_a_batch_whose_loss_is_none_leaves_nothing() -> None:
    model, data = classifier(layers=2), batches(6)
    encoder = find_encoder(model)
    skipped = (0, 3, 5)

    def loss(batch: Batch) -> Tensor | None:
        value = model(**batch).loss
        return None if any(batch is data[i] for i in skipped) else value

    found = calibrate(encoder, data, loss, moments=True)
    left = [batch for i, batch in enumerate(data) if i not in skipped]
    equal(found, calibrate(encoder, left, lambda batch: model(**batch).loss, moments=True))


def test_a_loss_of_none_on_all_batches_is_refused() -> None:
    model = classifier(layers=1)
    with pytest.raises(ValueError, match=r"None for all 3 calibration batches"):
        prune(model, batches(3), loss=lambda batch: None)


class Processes:
    """Two calibrations that share their sums, each in a thread."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)
        self.sent: list[Tensor | None] = [None, None]

    def all_reduce(self, rank: int, tensor: Tensor) -> Tensor:
        self.sent[rank] = tensor.clone()
        self.barrier.wait()
        total = self.sent[0] + self.sent[1]  # type: ignore[operator]
        self.barrier.wait()
        return tensor.copy_(total)

    def run(self, losses: list[Callable[[Any], Callable[[Batch], Any]]], data: list[list[Batch]]) -> list[Any]:
        results: list[Any] = [None, None]
        models = [classifier(layers=1), classifier(layers=1)]

        def calibrate_shard(rank: int) -> None:
            model = models[rank]
            try:
                results[rank] = calibrate(
                    find_encoder(model),
                    data[rank],
                    losses[rank](model),
                    lambda tensor: self.all_reduce(rank, tensor),
                    moments=True,
                )
            except ValueError as error:
                results[rank] = error

        threads = [threading.Thread(target=calibrate_shard, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def ordinary(model: Any) -> Callable[[Batch], Tensor]:
    return lambda batch: model(**batch).loss


@pytest.mark.filterwarnings("ignore:Only")
@pytest.mark.parametrize("kind", ["zero", "constant", "none", "empty"])
def test_one_process_without_signal_is_fine_and_both_without_are_refused_on_both(kind: str) -> None:
    def silent(model: Any) -> Callable[[Batch], Any]:
        return (lambda batch: None) if kind in ("none", "empty") else without_gradient(model, kind)

    own = [] if kind == "empty" else batches(2, seed=1)
    first, second = Processes().run([ordinary, silent], [batches(2), own])
    assert first.num_with_gradient == second.num_with_gradient == 16
    assert first.num_samples == second.num_samples == (32 if kind == "zero" else 16)
    assert all(torch.equal(value, second.fisher[key]) for key, value in first.fisher.items())
    errors = Processes().run([silent, silent], [own, own])
    assert all(isinstance(error, ValueError) for error in errors)
    assert str(errors[0]) == str(errors[1])


def offloaded() -> Any:
    return cpu_offload(classifier(), execution_device=torch.device("cpu"))


def made_in_inference_mode() -> Any:
    with torch.inference_mode():
        return classifier()


@pytest.mark.parametrize(("make", "message"), [(offloaded, "meta device"), (made_in_inference_mode, "inference_mode")])
def test_weights_without_gradients_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"weight of the encoder at 'bert' .*{message}"):
        prune(make(), batches(1))


@torch.inference_mode()
def test_inference_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inference_mode\(\) is on"):
        prune(classifier(), batches(1))
