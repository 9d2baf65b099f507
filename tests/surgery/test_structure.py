"""The record of a structure: what it says, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.tiny import MODEL_TYPES, RATIOS, classifier, pruned

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.structure import GONE, apply_structure, structure_of


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_dense_encoder_takes_on_the_recorded_structure(model_type: str, ratio: float) -> None:
    grouped, fresh = pruned(model_type, ratio), classifier(model_type, seed=1)
    record = structure_of(find_encoder(grouped))
    apply_structure(find_encoder(fresh), record)
    assert structure_of(find_encoder(fresh)) == record
    shapes = {name: tensor.shape for name, tensor in grouped.state_dict().items()}
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == shapes
    fresh.load_state_dict(grouped.state_dict())


def test_a_record_names_only_what_is_not_whole() -> None:
    record = structure_of(find_encoder(classifier(layers=2)))
    assert record["layers"] == [{}, {}]
    assert "pip install pgb-lightning" in record["requires"]
    shapes = [shape for layer in structure_of(find_encoder(pruned("bert")))["layers"] for shape in layer.values()]
    assert GONE in shapes
    assert any(shape.count("x") == 2 for shape in shapes)


def test_without_a_record_nothing_changes() -> None:
    model = classifier()
    apply_structure(find_encoder(model), None)
    assert structure_of(find_encoder(model))["layers"] == [{}, {}, {}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version=2; this release of pgb-lightning reads version 1"),
        ({"layers": [{}]}, "describes 1 layers, the encoder has 3"),
        ({"layers": None}, "describes no layers"),
        ({"layers": [{"X": "2x12x12"}, {}, {}]}, "has 'X': '2x12x12' for layer 0; it must name one of Q, K"),
        ({"layers": [{}, {"Q": "2x12"}, {}]}, "has 'Q': '2x12' for layer 1"),
        ({"layers": [{}, {"Q": [2, 12, 12]}, {}]}, r"has 'Q': \[2, 12, 12\] for layer 1"),
        ({"layers": [{}, {}, {"Q": "2x13x12"}]}, "layer 2 Q: num_groups=2 blocks of 13 x 12 do not fit"),
        ({"layers": [{"V": "gone"}, {}, {}]}, "keeps nothing of V in layer 0; .* Q, K, V, O must all be 'gone'"),
        ({"layers": [{"W2": "gone"}, {}, {}]}, "keeps nothing of W2 in layer 0; .* W1, W2 must all be 'gone'"),
    ],
)
def test_a_record_that_makes_no_sense_changes_nothing(change: dict[str, Any], message: str) -> None:
    model = classifier()
    encoder = find_encoder(model)
    record = structure_of(encoder)
    with pytest.raises(ValueError, match=message):
        apply_structure(encoder, {**record, **change})
    assert structure_of(encoder) == record
