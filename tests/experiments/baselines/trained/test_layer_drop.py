"""LayerDrop, and layers that are dropped before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.mask_training import LARGE, MODEL_TYPES, fit, has_no_trace, logits, module_of
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.top_layers import remove_layers
from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.layer_drop import DroppedLayers, LayerDrop, SkippedLayers
from pgb_lightning.surgery.dense_twin import dense_twin

FOUR = {**LARGE, "num_hidden_layers": 4}


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize(
    "callback", [LayerDrop(0.5), DroppedLayers(0.5, "alternate"), DroppedLayers(0.5, "contribution")]
)
def test_half_of_the_layers_are_gone_and_nothing_is_left_behind(
    tiny_model_folder: Callable[..., Path], model_type: str, callback: MaskTraining
) -> None:
    module = module_of(tiny_model_folder(model_type, **FOUR))
    assert fit(module, callback, steps=4) == pytest.approx(0.5)
    assert has_no_trace(module)
    assert not any("forward" in vars(part) for part in module.modules())
    after = logits(module)
    module.model = dense_twin(module.model)
    assert torch.equal(logits(module), after)


@pytest.mark.parametrize("model_type", [*MODEL_TYPES, "modernbert"])
def test_a_skipped_layer_is_as_good_as_removed(tiny_model_folder: Callable[..., Path], model_type: str) -> None:
    module = module_of(tiny_model_folder(model_type, **LARGE))
    before = logits(module)
    layers = SkippedLayers(find_encoder(module))
    layers.skipped = [0]
    first, second = logits(module), logits(module)
    layers.remove()
    assert torch.equal(logits(module), before)
    remove_layers(find_encoder(module), [0])
    assert not torch.allclose(before, first, atol=1e-3)
    for skipped in (first, second):  # the first call finds out what a layer returns
        torch.testing.assert_close(skipped, logits(module), atol=1e-5, rtol=1e-5)


def test_layers_are_skipped_as_often_as_the_rate_says(tiny_model_folder: Callable[..., Path]) -> None:
    skipped: list[int] = []

    class Watched(LayerDrop):
        def before_forward(self) -> None:
            super().before_forward()
            skipped.extend(self.layers.skipped)

    fit(module_of(tiny_model_folder("bert", **FOUR)), Watched(0.25, rate=0.4), steps=25)
    assert len(skipped) / 100 == pytest.approx(0.4, abs=0.15)


def test_the_layer_that_changes_its_input_least_contributes_least(tiny_model_folder: Callable[..., Path]) -> None:
    module = module_of(tiny_model_folder("bert", **FOUR))
    for kind in ("O", "W2"):  # a layer that only normalizes what is normalized already
        # Not by torch.nn.init: while transformers loads a model, its functions leave loaded weights alone.
        find_encoder(module).matrix(1, kind).weight.data.zero_()
    kept = [id(layer) for number, layer in enumerate(find_encoder(module).layers) if number != 1]
    fit(module, DroppedLayers(0.25, "contribution", measured=0.5), steps=4)
    assert [id(layer) for layer in find_encoder(module).layers] == kept


def test_invalid_settings_and_models_are_refused(tiny_model_folder: Callable[..., Path]) -> None:
    with pytest.raises(MisconfigurationException, match=r"rate=1\.0"):
        LayerDrop(0.5, rate=1.0)
    with pytest.raises(MisconfigurationException, match="order='best'"):
        DroppedLayers(0.5, "best")  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match="albert"):
        fit(module_of(tiny_model_folder("albert", vocab_size=60)), LayerDrop(0.5))
