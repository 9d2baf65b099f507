"""Structure: the same from a plan, a state dict and a record, and errors for records that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.tiny import MODEL_TYPES, RATIOS, batches, classifier

from pgb_lightning import PruningConfig, apply_plan, prune
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.structure import GONE, Structure

#: All families at one ratio, and BERT at all of them.
CASES = [(model_type, ratio) for model_type in MODEL_TYPES for ratio in RATIOS if model_type == "bert" or ratio == 0.5]


def record_of(model: Any) -> dict[str, Any]:
    encoder = find_encoder(model)
    return Structure.of(encoder).to_record(encoder)


@pytest.mark.parametrize(("model_type", "ratio"), CASES)
@pytest.mark.parametrize("preset", ["balanced", "default"])
def test_plan_state_dict_and_record_give_the_same_structure(model_type: str, ratio: float, preset: str) -> None:
    model, fresh = classifier(model_type), classifier(model_type, seed=1)
    plan = prune(model, batches(4), PruningConfig.from_preset(preset, pruning_ratio=ratio))
    encoder = find_encoder(fresh)
    structure = Structure.from_plan(encoder, plan)
    assert structure == Structure.of(find_encoder(model))
    state = {f"prefix.{name}": value for name, value in model.state_dict().items()}
    assert structure == Structure.from_state_dict(encoder, state, prefix="prefix.")
    assert structure == Structure.from_record(encoder, structure.to_record(encoder))
    structure.build(encoder)
    assert structure == Structure.of(encoder)
    assert {name: value.shape for name, value in fresh.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    layers = dict(fresh.named_modules())
    structure.build(encoder)  # nothing is left to do
    assert all(module is layers[name] for name, module in fresh.named_modules())
    fresh.load_state_dict(model.state_dict())


def test_a_dense_structure_changes_nothing() -> None:
    model = classifier(layers=2)
    structure = Structure.of(find_encoder(model))
    before = list(model.named_modules())
    structure.build(find_encoder(model))
    assert list(model.named_modules()) == before
    assert all("feed_forward_chunk" not in vars(module) for module in model.modules())
    record = record_of(model)
    assert record["layers"] == [{}, {}]
    assert "pip install pgb-lightning" in record["requires"]


def test_a_record_has_an_entry_for_each_matrix_that_is_not_dense() -> None:
    model = classifier()
    plan = prune(model, batches(4), PruningConfig.from_preset("balanced", pruning_ratio=0.5))
    entries = [shape for layer in record_of(model)["layers"] for shape in layer.values()]
    assert entries.count(GONE) == sum(matrix.num_groups == 0 for matrix in plan.matrices) > 0
    assert any(shape.count("x") == 2 for shape in entries)
    again = classifier()
    apply_plan(again, plan)
    assert record_of(again) == record_of(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version=3"),
        ({"layers": [{}]}, "describes 1 layers.* 3"),
        ({"layers": None}, "describes no layers"),
        ({"layers": [{"X": "2x12x12"}, {}, {}]}, "layer 0: 'X': '2x12x12'.* Q, K"),
        ({"layers": [{}, {"Q": "2x12"}, {}]}, "layer 1: 'Q': '2x12'"),
        ({"layers": [{}, {"Q": [2, 12, 12]}, {}]}, r"layer 1: 'Q': \[2, 12, 12\]"),
        ({"layers": [{}, {}, {"Q": "2x13x12"}]}, "layer 2: Q: 2 blocks of 13 x 12"),
        ({"layers": [{}, {}, {"Q": "0x12x12"}]}, "layer 2: Q: 0 blocks of 12 x 12"),
        ({"layers": [{"V": "gone"}, {}, {}]}, "layer 0: V .*Q, K, V, O"),
        ({"layers": [{"W2": "gone"}, {}, {}]}, "layer 0: W2 .*W1, W2"),
        ({"layers": [{}, {"attention": "5"}, {}]}, "layer 1: 'attention': '5'.* 12 .* 24"),
        ({"layers": [{}, {"ffn": "97"}, {}]}, "layer 1: 'ffn': '97'.* 96"),
    ],
)
def test_an_invalid_record_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    model = classifier()
    record = record_of(model)
    with pytest.raises(ValueError, match=message):
        Structure.from_record(find_encoder(model), {**record, **change})
    assert record_of(model) == record
