"""Losses of drawn labels and random directions: their gradients have the exact Fisher information as second moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from pgb_lightning.calibration.drawn import drawn_classes, drawn_labels, drawn_values, make_generator, random_direction

Draw = Callable[[Tensor, Generator], Tensor]
COUNT = 20_000
LOGITS = torch.tensor([1.0, -0.5, 0.3])


def second_moment(draw: Draw, logits: Tensor = LOGITS) -> Tensor:
    """Return the mean over many draws of g gᵀ, where g is the gradient with respect to the logits, (C, C)."""
    rows = logits.expand(COUNT, -1).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(draw(rows, make_generator(0, 0)).sum(), rows)
    return gradients.T @ gradients / COUNT


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.015)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradients_of_drawn_classes_have_the_fisher_information_as_second_moment(temperature: float) -> None:
    probabilities = (LOGITS / temperature).softmax(-1)
    exact = (probabilities.diag() - torch.outer(probabilities, probabilities)) / temperature**2
    assert_close(second_moment(lambda rows, source: drawn_classes(rows, source, temperature)), exact)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradients_of_drawn_labels_have_the_fisher_information_as_second_moment(temperature: float) -> None:
    probabilities = (LOGITS / temperature).sigmoid()
    exact = (probabilities * (1 - probabilities)).diag() / temperature**2
    assert_close(second_moment(lambda rows, source: drawn_labels(rows, source, temperature)), exact)


def test_gradients_of_drawn_values_have_the_identity_as_second_moment() -> None:
    torch.testing.assert_close(second_moment(drawn_values), torch.eye(3), rtol=0.0, atol=0.03)


def test_gradients_of_random_directions_have_the_identity_as_second_moment() -> None:
    torch.testing.assert_close(second_moment(random_direction), torch.eye(3), rtol=0.0, atol=0.03)


def test_excluded_classes_are_never_drawn_and_add_nothing() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    found = second_moment(drawn_classes, logits)
    assert found.isfinite().all()
    assert found[1, 1] > 0.2
    assert not found[[0, 2, 4]].any()


def test_draws_of_classes_have_the_frequencies_of_the_predictions() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0]).expand(COUNT, -1)
    probabilities = logits[0].softmax(-1)
    drawn = (-drawn_classes(logits, make_generator(0, 0))).exp()
    for probability in probabilities:
        assert (drawn - probability).abs().lt(1e-5).float().mean() == pytest.approx(float(probability), abs=0.01)


def test_draws_depend_on_the_seed_and_the_number_of_the_batch_only() -> None:
    before = torch.get_rng_state()
    logits = torch.zeros(64, 2)
    first, again = (drawn_values(logits, make_generator(1, 2)) for _ in range(2))
    assert torch.equal(first, again)
    for seed, batch in ((1, 3), (2, 2), (2, 1)):
        assert not torch.equal(first, drawn_values(logits, make_generator(seed, batch)))
    assert torch.equal(before, torch.get_rng_state())


def test_half_precision_is_computed_in_single_precision() -> None:
    logits = torch.tensor([[3.0, 1.0]], dtype=torch.bfloat16)
    for draw in (drawn_classes, drawn_labels, drawn_values, random_direction):
        assert draw(logits, make_generator(0, 0)).dtype == torch.float32
