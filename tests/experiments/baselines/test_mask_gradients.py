"""Mask gradients, compared with those of explicit masks."""

from __future__ import annotations

import pytest
import torch
from helpers.kinds import SUBLAYERS
from helpers.tiny import MODEL_TYPES, batches, classifier

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.mask_gradients import collect_mask_gradients


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_gradients_equal_those_of_explicit_masks(model_type: str) -> None:
    model = classifier(model_type)
    encoder = find_encoder(model)
    found = collect_mask_gradients(model, batches(2))
    sample = {name: value[3:4] for name, value in batches(2)[1].items()}  # row 8 + 3
    for (layer, name), gradients in found.gradients.items():
        assert gradients.shape == (16, 2 if name == "attention" else 96)
        mask = torch.ones(gradients.shape[1], requires_grad=True)
        unit = 12 if name == "attention" else 1
        closing = encoder.matrix(layer, SUBLAYERS[name][-1])
        handle = closing.register_forward_pre_hook(lambda _, args, m=mask, u=unit: args[0] * m.repeat_interleave(u))  # type: ignore[misc]
        model(**sample).loss.backward()
        handle.remove()
        torch.testing.assert_close(gradients[11].float(), mask.grad, rtol=1e-3, atol=1e-6)


def test_first_layer_inputs_are_limited_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    given = batches(6)
    found = collect_mask_gradients(model, given)
    assert len(found.inputs) == 6
    assert torch.equal(found.inputs[2].tokens, given[2]["attention_mask"].bool())
    monkeypatch.setattr(
        "pgb_lightning.experiments.baselines.mask_gradients.MAX_TOKENS", given[0]["attention_mask"].sum() + 1
    )
    assert len(collect_mask_gradients(model, given).inputs) == 2
