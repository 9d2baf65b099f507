"""Block movement pruning: the sign of the scores, both variants, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.mask_training import LARGE, MODEL_TYPES, fit, has_no_trace, logits, module_of

from pgb_lightning.experiments.baselines.trained.movement import BlockMovement, MovementSettings
from pgb_lightning.surgery.dense_twin import dense_twin

#: Blocks that are smaller than a head of the tiny models.
SMALL = MovementSettings(block=4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("filled", "distillation"), [(True, False), (False, True)])
def test_the_target_is_met_and_nothing_is_left_behind(
    tiny_model_folder: Callable[..., Path], model_type: str, filled: bool, distillation: bool
) -> None:
    module = module_of(tiny_model_folder(model_type, **LARGE))
    callback = BlockMovement(0.5, distillation, filled, SMALL)
    assert fit(module, callback, steps=6) == pytest.approx(0.5, abs=0.01)
    assert has_no_trace(module)
    after = logits(module)
    module.model = dense_twin(module.model)
    torch.testing.assert_close(logits(module), after, atol=1e-4, rtol=1e-4)


def test_scores_fall_where_training_shrinks_weights_and_rise_where_it_enlarges_them(
    tiny_model_folder: Callable[..., Path],
) -> None:
    class Drawn(BlockMovement):
        """Pull the weights of some blocks to zero, and push the others away from it."""

        def before_optimizer(self) -> None:
            for linear in self.stored:
                half = len(linear.weight) // 2
                sign = torch.ones_like(linear.weight)
                sign[half:] = -1
                linear.weight.grad = sign * linear.weight.detach()
            super().before_optimizer()

    callback = Drawn(0.5, settings=SMALL)
    fit(module_of(tiny_model_folder("bert", **LARGE)), callback, steps=2)
    for (_, kind), score in callback.scores.items():
        if kind in ("Q", "K", "V", "O"):
            half = len(score) // 2
            assert (score[:half] < 0).all()
            assert (score[half:] > 0).all()


def test_a_masked_weight_is_zero_and_keeps_its_value_until_it_comes_back(
    tiny_model_folder: Callable[..., Path],
) -> None:
    kept = []

    class Watched(BlockMovement):
        def after_optimizer(self) -> None:
            before = {linear: mask == 0 for linear, mask in self._masks(self._open).items()}
            values = {linear: stored[before[linear]].clone() for linear, stored in self.stored.items()}
            super().after_optimizer()
            now = self._masks(self._open)
            for linear, stored in self.stored.items():
                assert torch.equal(linear.weight, stored * now[linear])
                assert torch.equal(stored[before[linear]], values[linear])
            kept.append(sum(int(mask.sum()) for mask in now.values()))

    fit(module_of(tiny_model_folder("bert", **LARGE)), Watched(0.5, filled=False, settings=SMALL))
    assert kept[-1] / kept[0] == pytest.approx(0.5, abs=0.01)
