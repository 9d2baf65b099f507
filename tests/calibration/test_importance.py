"""Second-order importance."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import classifier

from pgb_lightning.calibration.importance import encoder_importances, second_order_importance
from pgb_lightning.encoders.find import find_encoder


def test_it_is_the_squared_weight_times_fisher() -> None:
    weight, fisher = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1.0, 4.0], [9.0, 0.5]])
    assert torch.equal(second_order_importance(weight, fisher), torch.tensor([[4.0, 4.0], [0.0, 4.5]]))


def test_it_is_twice_the_increase_of_a_quadratic_loss() -> None:
    curvature, weight = torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 0.5]])

    def loss(w: torch.Tensor) -> torch.Tensor:
        return 0.5 * (curvature * (w - weight) ** 2).sum()

    importance = second_order_importance(weight, curvature)
    for column in range(2):
        removed = weight.clone()
        removed[0, column] = 0
        assert loss(removed) == 0.5 * importance[0, column]


def test_the_result_is_detached_and_the_weight_unchanged() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert not second_order_importance(weight, torch.ones(2, 2)).requires_grad
    assert torch.equal(weight, torch.ones(2, 2))


def test_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        second_order_importance(torch.ones(2, 3), torch.ones(3, 2))


def test_an_encoder_has_the_importance_of_every_matrix() -> None:
    encoder = find_encoder(classifier())
    fisher = {key: torch.rand(linear.weight.T.shape) for key, linear in encoder.linears()}
    found = encoder_importances(encoder, fisher)
    assert found.keys() == fisher.keys()
    for key, linear in encoder.linears():
        torch.testing.assert_close(found[key], linear.weight.detach().T ** 2 * fisher[key])
