"""EBERT: gates that depend on the input, and the network that is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.mask_training import LARGE, MODEL_TYPES, fit, has_no_trace, logits, module_of

from pgb_lightning.experiments.baselines.trained.ebert import Ebert, EbertSettings, Gates
from pgb_lightning.surgery.dense_twin import dense_twin


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_target_is_met_and_nothing_is_left_behind(tiny_model_folder: Callable[..., Path], model_type: str) -> None:
    module = module_of(tiny_model_folder(model_type, **LARGE))
    assert fit(module, Ebert(0.5), steps=4) == pytest.approx(0.5, abs=0.01)
    assert has_no_trace(module)
    after = logits(module)
    module.model = dense_twin(module.model)
    torch.testing.assert_close(logits(module), after, atol=1e-4, rtol=1e-4)


def test_gates_are_open_or_closed_depend_on_the_input_and_have_gradients() -> None:
    torch.manual_seed(0)
    gates = Gates(8, 20, initial=0.0)
    read = 5 * torch.randn(6, 8)
    drawn = gates(read)
    assert set(drawn.detach().round(decimals=5).abs().flatten().tolist()) == {0.0, 1.0}
    drawn.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in gates.parameters())
    gates.eval()
    assert torch.equal(gates(read), gates(read))
    assert len({tuple(row) for row in gates(read).tolist()}) > 1


def test_the_penalty_draws_the_mean_cost_to_the_target(tiny_model_folder: Callable[..., Path]) -> None:
    settings = EbertSettings(gate_learning_rate=0.05, decay=0.5)
    callback = Ebert(0.6, settings)
    fit(module_of(tiny_model_folder("bert", **LARGE)), callback, steps=40)
    assert callback.open_fraction == pytest.approx(0.4, abs=0.15)
