"""CoFi: the hard concrete distribution, the Lagrangian, and both ways to train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.mask_training import LARGE, MODEL_TYPES, fit, has_no_trace, logits, module_of
from helpers.tiny import classifier
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.trained.cofi import CoFi, CoFiSettings
from pgb_lightning.experiments.baselines.trained.hard_concrete import probability_open, sample
from pgb_lightning.model_calls import Call
from pgb_lightning.surgery.dense_twin import dense_twin

#: A fit of few steps needs masks that move fast.
FAST = CoFiSettings(mask_learning_rate=0.5)


def test_samples_are_open_with_the_expected_probability() -> None:
    torch.manual_seed(0)
    for location in (-2.0, 0.0, 1.0):
        drawn = sample(torch.full((20000,), location))
        assert drawn.min() == 0
        assert drawn.max() == 1
        expected = float(probability_open(torch.tensor(location)))
        assert float((drawn > 0).double().mean()) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("distillation", [True, False])
def test_the_target_is_met_and_nothing_is_left_behind(
    tiny_model_folder: Callable[..., Path], model_type: str, distillation: bool
) -> None:
    module = module_of(tiny_model_folder(model_type, **LARGE))
    callback = CoFi(0.5, distillation, FAST)
    assert fit(module, callback, steps=6) == pytest.approx(0.5, abs=0.01)
    assert has_no_trace(module)
    after = logits(module)
    module.model = dense_twin(module.model)
    torch.testing.assert_close(logits(module), after, atol=1e-4, rtol=1e-4)


def test_the_multipliers_drive_the_expected_size_to_the_target() -> None:
    callback = CoFi(0.6, distillation=False, settings=CoFiSettings(mask_learning_rate=0.05))
    callback.model = classifier()
    callback.encoder = find_encoder(callback.model)
    callback.start()
    callback.progress = 1.0
    assert callback.optimizer is not None
    removed = []
    for _ in range(600):
        callback.loss(torch.zeros(()), Call()).backward()
        callback.optimizer.step()
        callback.optimizer.zero_grad()
        callback.after_optimizer()
        removed.append(float(callback.expected_removed().detach()))
    assert removed[0] < 0.2
    assert removed[-1] == pytest.approx(0.6, abs=0.05)


def test_the_masked_model_of_validation_is_the_model_that_is_left(tiny_model_folder: Callable[..., Path]) -> None:
    module, seen = module_of(tiny_model_folder("bert", **LARGE)), []

    class Watched(CoFi):
        def after_optimizer(self) -> None:
            super().after_optimizer()
            self._final = {}
            seen.append(logits(module))
            module.train()

    fit(module, Watched(0.5, distillation=True, settings=FAST))
    torch.testing.assert_close(logits(module), seen[-1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen[0], seen[-1], atol=1e-3)


def test_an_impossible_ratio_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"ratio=1\.5"):
        CoFi(1.5)
