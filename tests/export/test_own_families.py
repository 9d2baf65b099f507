"""A family that a user registers from outside is exported, saved and loaded like those of this package."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import randomize, tiny_batches, tiny_logits
from helpers.heads import DROPS, EVERYTHING, removing
from helpers.own_encoder import OWN, OwnEncoderConfig, OwnEncoderForSequenceClassification, OwnEncoderModel
from helpers.processes import run
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    BertModel,
)

from pgb_lightning import PruningConfig, apply_plan, dense_twin, prune
from pgb_lightning.encoders import FAMILIES, register
from pgb_lightning.encoders.bert import BERT
from pgb_lightning.export import export_dense, export_huggingface, to_exported
from pgb_lightning.export.card import make_card


@pytest.fixture(scope="module")
def model() -> Any:
    """Make a pruned model of a user's own encoder, with grouped parts in its fused layers."""
    made = OwnEncoderForSequenceClassification(OwnEncoderConfig())
    randomize(made)
    settings = PruningConfig.from_preset("balanced", pruning_ratio=0.5)
    prune(made, tiny_batches(2), settings)
    return made.eval()


@pytest.fixture
def _types() -> Iterator[None]:
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def test_a_pruned_model_of_an_own_encoder_is_saved_and_exported(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    export_huggingface(model, tmp_path / "exported")
    for name in ("saved", "exported"):
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == "pgb-lightning-own_encoder"
        loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
        torch.testing.assert_close(tiny_logits(loaded), tiny_logits(model))
        assert torch.equal(tiny_logits(copy.deepcopy(loaded)), tiny_logits(loaded))
        twin = dense_twin(loaded)
        assert type(twin) is OwnEncoderForSequenceClassification
        torch.testing.assert_close(tiny_logits(twin), tiny_logits(model))
    export_dense(loaded, tmp_path / "dense")
    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert type(dense) is OwnEncoderForSequenceClassification
    torch.testing.assert_close(tiny_logits(dense), tiny_logits(model))
    assert type(AutoModel.from_pretrained(tmp_path / "exported")).dense_class is OwnEncoderModel


@pytest.mark.parametrize("removed", [DROPS, EVERYTHING], ids=["some", "all"])
def test_dropped_sublayers_of_an_own_encoder(removed: Any, tmp_path: Path) -> None:
    made = OwnEncoderForSequenceClassification(OwnEncoderConfig(num_hidden_layers=3))
    randomize(made)
    apply_plan(
        made, removing(made, {layer: {*kinds, *(["W3"] if "W1" in kinds else [])} for layer, kinds in removed.items()})
    )
    torch.testing.assert_close(tiny_logits(dense_twin(made)), tiny_logits(made))
    made.save_pretrained(tmp_path)
    torch.testing.assert_close(
        tiny_logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), tiny_logits(made)
    )


@pytest.mark.slow
def test_a_new_process_loads_the_folder_once_the_package_is_imported(model: Any, tmp_path: Path) -> None:
    export_huggingface(model, tmp_path / "out")
    batch = {name: value for name, value in tiny_batches(1)[0].items() if name != "labels"}
    torch.save(batch, tmp_path / "batch.pt")
    exported = to_exported(model)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(exported))
    out = run("programs/load_own.py", tmp_path / "out", tmp_path / "batch.pt", tmp_path / "model.pkl")
    error, loaded, unpickled, names = out.splitlines()
    assert "pgb-lightning-own_encoder" in error
    expected = model(**batch).logits
    torch.testing.assert_close(torch.tensor(json.loads(loaded)), expected)
    torch.testing.assert_close(torch.tensor(json.loads(unpickled)), expected)
    assert names == "PGBOwnEncoderForSequenceClassification PGBOwnEncoderModel PGBOwnEncoderConfig"


def test_the_card_names_the_package_to_import(model: Any) -> None:
    card = make_card(to_exported(model), "huggingface")
    assert "import helpers  # which knows own_encoder" in card.text
    assert "W3" in card.text
    assert str(card) == str(make_card(model, "huggingface"))


@pytest.mark.usefixtures("_types")
def test_transformers_may_get_to_know_the_classes_after_the_family(tmp_path: Path) -> None:
    class LateConfig(BertConfig):
        model_type = "late_bert"

    class LateModel(BertModel):
        config_class = LateConfig

    class LateTagger(BertForTokenClassification):
        config_class = LateConfig

    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    tagger = LateTagger(LateConfig(**sizes, intermediate_size=48)).eval()
    register("late_bert", BERT)
    with pytest.raises(ValueError, match=r"'late_bert' .*AutoConfig\.register"):
        AutoConfig.for_model("pgb-lightning-late_bert")
    with pytest.raises(ValueError, match=r"'late_bert' .*AutoConfig\.register"):
        to_exported(tagger)
    AutoConfig.register("late_bert", LateConfig)
    with pytest.raises(ValueError, match=r"LateTagger cannot be exported.*AutoModel\.register"):
        to_exported(tagger)
    AutoModel.register(LateConfig, LateModel)
    encoder = LateModel(tagger.config)
    assert type(to_exported(encoder).config) is type(AutoConfig.for_model("pgb-lightning-late_bert"))
    AutoModelForTokenClassification.register(LateConfig, LateTagger)
    assert type(to_exported(tagger)).__name__ == "PGBLateTagger"
    export_huggingface(tagger, tmp_path / "out")
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert type(loaded).dense_class is LateTagger


@pytest.mark.usefixtures("_types")
def test_a_class_with_the_name_of_one_of_transformers_keeps_to_itself() -> None:
    config_class = type("BertConfig", (BertConfig,), {"model_type": "name-sake", "__module__": __name__})
    model_class = type("BertModel", (BertModel,), {"config_class": config_class, "__module__": __name__})
    register("name-sake", BERT)
    AutoConfig.register("name-sake", config_class)
    AutoModel.register(config_class, model_class, exist_ok=True)  # which the name of the configuration needs
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    exported = to_exported(model_class(config_class(**sizes, intermediate_size=48)))
    assert type(exported).dense_class is model_class
    assert type(exported).__name__ == "PGB_name_sake_BertModel"
    theirs = to_exported(BertModel(BertConfig(**sizes, intermediate_size=48)))
    assert (type(theirs).__name__, type(theirs).dense_class) == ("PGBBertModel", BertModel)
    for each in (exported, theirs):
        assert type(pickle.loads(pickle.dumps(each))) is type(each)


def test_a_family_can_be_registered_again() -> None:
    register("own_encoder", OWN)
    assert AutoConfig.for_model("pgb-lightning-own_encoder").dense_class is OwnEncoderConfig
