"""DynaBERT: nested widths that are trained together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.mask_training import LARGE, MODEL_TYPES, fit, has_no_trace, logits, module_of

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.trained.dynabert import DynaBert, DynaBertSettings
from pgb_lightning.experiments.baselines.trained.units import Mask, attach_masks, places
from pgb_lightning.surgery.dense_twin import dense_twin


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("ratio", "distillation"), [(0.5, True), (0.88, False)])
def test_the_target_is_met_and_nothing_is_left_behind(
    tiny_model_folder: Callable[..., Path], model_type: str, ratio: float, distillation: bool
) -> None:
    module = module_of(tiny_model_folder(model_type, **LARGE))
    assert fit(module, DynaBert(ratio, distillation), steps=4) == pytest.approx(ratio, abs=0.01)
    assert has_no_trace(module)
    after = logits(module)
    module.model = dense_twin(module.model)
    torch.testing.assert_close(logits(module), after, atol=1e-4, rtol=1e-4)


def test_widths_are_nested_and_keep_the_most_important_of_each_layer(tiny_model_folder: Callable[..., Path]) -> None:
    module = module_of(tiny_model_folder("bert", **LARGE))
    callback = DynaBert(0.7, settings=DynaBertSettings(measured=0.5))
    fit(module, callback, steps=4)
    callback.encoder = find_encoder(module_of(tiny_model_folder("bert", **LARGE)))  # not pruned
    networks = [callback.network(width) for width in (1.0, 0.75, 0.5, 0.25)]
    for wide, narrow in pairwise(networks):
        for place, scores in callback.importance.items():
            kept, others = set(narrow[place].tolist()), set(range(len(scores))) - set(narrow[place].tolist())
            assert kept < set(wide[place].tolist())
            assert min(scores[list(kept)]) >= max(scores[list(others)])
    assert [len(network[1, "ffn"]) for network in networks] == [96, 72, 48, 24]
    assert [len(network[0, "attention"]) for network in networks] == [4, 3, 2, 1]


def test_gradients_are_those_of_all_widths_together(tiny_model_folder: Callable[..., Path]) -> None:
    found: dict[str, Any] = {}

    class Watched(DynaBert):
        def on_after_backward(self, *args: Any) -> None:
            super().on_after_backward(*args)
            if self.widths and not found:
                found["given"] = self.model.classifier.weight.grad.clone()
                self.model.zero_grad()
                for masks in ({place: Mask() for place in places(self.encoder)}, *self.widths):
                    self._masks = masks
                    self.model(*self._call.args, **self._call.kwargs).loss.backward()
                    self._masks = {}
                found["expected"] = self.model.classifier.weight.grad.clone()

    fit(module_of(tiny_model_folder("bert", **LARGE)), Watched(0.5, distillation=False), steps=3)
    torch.testing.assert_close(found["given"], found["expected"])


def test_the_importance_is_the_gradient_of_a_mask(tiny_model_folder: Callable[..., Path]) -> None:
    module = module_of(tiny_model_folder("bert", **LARGE))
    encoder = find_encoder(module)
    gradients: dict[Any, torch.Tensor] = {}

    class Watched(DynaBert):
        def start(self) -> None:
            super().start()
            self.units = {place: torch.ones_like(each, requires_grad=True) for place, each in self.importance.items()}
            self.handles += attach_masks(encoder, lambda place: Mask(self.units[place]))

        def before_optimizer(self) -> None:
            first = not any(each.any() for each in self.importance.values())
            super().before_optimizer()
            for place, units in self.units.items() if first else ():
                assert units.grad is not None
                gradients[place] = units.grad.abs()
                torch.testing.assert_close(self.importance[place], gradients[place], atol=1e-6, rtol=1e-3)

    fit(module, Watched(0.5, distillation=False), steps=2)
    assert len(gradients) == 4
