"""PLATON: the confidence bound, single weights and structures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.fakes import quiet_trainer
from helpers.mask_training import LARGE, MODEL_TYPES, fit, has_no_trace, logits, module_of
from helpers.tiny import batches
from torch.utils.data import DataLoader

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.masks import make_permanent, mask_zeros
from pgb_lightning.experiments.baselines.trained.platon import Confidence, Platon, PlatonSettings
from pgb_lightning.surgery.dense_twin import dense_twin

SHORT = PlatonSettings(window=2)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("structured", "steps"), [(False, 12), (True, 12), (True, 1)])
def test_the_target_is_met_and_nothing_is_left_behind(
    tiny_model_folder: Callable[..., Path], model_type: str, structured: bool, steps: int
) -> None:
    module = module_of(tiny_model_folder(model_type, **LARGE))
    assert fit(module, Platon(0.5, structured, SHORT), steps) == pytest.approx(0.5, abs=0.01)
    assert has_no_trace(module)
    after = logits(module)
    module.model = dense_twin(module.model)
    torch.testing.assert_close(logits(module), after, atol=1e-4, rtol=1e-4)


def test_of_two_equal_importances_the_uncertain_one_has_the_higher_bound() -> None:
    bound = Confidence(PlatonSettings(window=1))
    for step in range(100):
        bound.add(torch.tensor([1.0, 2.0 * (step % 2), 0.0]))
    assert bound.importance is not None
    assert bound.importance[0] == pytest.approx(float(bound.importance[1]), rel=0.2)
    steady, varying, unimportant = bound.score().tolist()
    assert varying > 10 * steady
    assert unimportant == 0


def test_a_window_averages_its_steps() -> None:
    long, short = Confidence(PlatonSettings(window=4)), Confidence(PlatonSettings(window=1))
    for value in (1.0, 2.0, 3.0, 6.0):
        assert not long.window_ended
        long.add(torch.tensor([value]))
    short.add(torch.tensor([3.0]))
    assert long.window_ended
    assert torch.equal(long.score(), short.score())


def test_the_removed_fraction_grows_and_weights_may_come_back(tiny_model_folder: Callable[..., Path]) -> None:
    zeros: list[list[torch.Tensor]] = []

    class Watched(Platon):
        def after_optimizer(self) -> None:
            super().after_optimizer()
            zeros.append([linear.weight == 0 for linear in self.of_weights])

    fit(module_of(tiny_model_folder("bert", **LARGE)), Watched(0.5, settings=PlatonSettings(window=1)), steps=20)
    counts = [sum(int(part.sum()) for part in parts) for parts in zeros]
    assert counts == sorted(counts)
    came_back = [bool((before & ~after).any()) for before, after in zip(zeros[-2], zeros[-1], strict=True)]
    assert any(came_back)


def test_zeros_hold_in_further_training(tiny_model_folder: Callable[..., Path]) -> None:
    module = module_of(tiny_model_folder("bert", **LARGE))
    fit(module, Platon(0.5, settings=SHORT), steps=4)
    encoder = find_encoder(module)
    zeros = [linear.weight == 0 for linear, _ in encoder.hook_points()]
    before = [linear.weight.clone() for linear, _ in encoder.hook_points()]
    mask_zeros(encoder)
    copy.deepcopy(module)
    quiet_trainer().fit(module.train(), DataLoader(batches(2), batch_size=None))  # type: ignore[arg-type]
    make_permanent(module)
    for (linear, _), zero, old in zip(encoder.hook_points(), zeros, before, strict=True):
        assert torch.equal(linear.weight == 0, zero)
        assert not torch.equal(linear.weight, old)
