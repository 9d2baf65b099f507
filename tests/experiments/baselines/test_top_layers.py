"""Layers are dropped permanently."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier, logits

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.top_layers import choose_layers, drop_layers


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("order", "left"), [("top", [0, 1]), ("alternate", [0, 2])])
def test_the_pruned_model_equals_the_model_without_the_layers(model_type: str, order: str, left: list[int]) -> None:
    model, same = classifier(model_type, layers=4), classifier(model_type, layers=4)
    layers = find_encoder(model).layers
    drop_layers(model, None, 0.5, order)  # type: ignore[arg-type]
    assert find_encoder(model).layers == [layers[number] for number in left]
    assert model.config.num_hidden_layers == 2
    for number in {0, 1, 2, 3} - set(left):  # an identity layer
        find_encoder(same).layers[number].forward = lambda hidden_states, *args, **kwargs: (
            (hidden_states,) if model_type == "mpnet" else hidden_states
        )
    torch.testing.assert_close(logits(model), logits(same))


@pytest.mark.parametrize(("ratio", "left"), [(0.01, 2), (0.3, 2), (0.6, 1), (0.99, 1)])
def test_the_nearest_number_of_layers_is_dropped_but_never_all(ratio: float, left: int) -> None:
    model = classifier()
    drop_layers(model, None, ratio)
    assert len(find_encoder(model).layers) == left
    assert logits(model).isfinite().all()
    assert model(**batches(1)[0]).loss.isfinite()


@pytest.mark.parametrize("order", ["top", "alternate"])
def test_a_single_layer_is_not_dropped(order: str) -> None:
    model = classifier(layers=1)
    with pytest.raises(ValueError, match="1 layer"):
        drop_layers(model, None, 0.5, order)  # type: ignore[arg-type]
    assert len(find_encoder(model).layers) == 1


@pytest.mark.parametrize("count", range(1, 6))
def test_the_requested_number_of_layers_is_chosen(count: int) -> None:
    assert len(choose_layers(6, count, "alternate")) == len(choose_layers(6, count, "top")) == count
