"""The content of model cards."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny import batches, classifier, pruned

from pgb_lightning import PruningConfig, prune
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import CardFacts, to_exported
from pgb_lightning.export.card import make_card


def test_a_card_holds_all_facts() -> None:
    model = classifier()
    total = encoder_cost(find_encoder(model)).parameters
    plan = prune(model, batches(4), PruningConfig.from_preset("paper", pruning_ratio=0.5))
    facts = CardFacts("bert-base-uncased", "sst2", {"accuracy": 91.25}, {"batch 1": 10.5})
    card = make_card(model, "huggingface", facts, plan)
    assert card.data.base_model == "bert-base-uncased"
    assert card.data.pipeline_tag == "text-classification"
    assert "# bert-base-uncased on sst2" in card.text
    assert f"{plan.kept_parameters:,} of {total:,}" in card.text
    for line in ("| accuracy | 91.25 |", "| batch 1 | 10.5 |", "| permutation of the plan | greedy |"):
        assert line in card.text
    assert card.text.index("import pgb_lightning") < card.text.index('pipeline("text-classification", ')


def test_the_card_of_an_exported_model_equals_that_of_the_pruned_model() -> None:
    model = pruned("bert")
    assert str(make_card(to_exported(model), "huggingface")) == str(make_card(model, "huggingface"))


def test_a_card_without_facts_is_made_from_the_model_alone() -> None:
    card = make_card(pruned("roberta"), "dense")
    assert "# roberta" in card.text
    assert not any(word in card.text for word in ("Scores", "Latency", "import pgb_lightning"))


def test_an_onnx_card_names_its_file() -> None:
    card = make_card(pruned("bert"), "onnx/model_quantized.onnx")
    assert 'InferenceSession("onnx/model_quantized.onnx")' in card.text
    assert "pipeline('text-classification', 'THIS FOLDER', { dtype: 'q8' })" in card.text
    assert "{ dtype: 'fp32' }" in make_card(pruned("bert"), "onnx/model.onnx").text
    assert "onnx" in card.data.tags


def test_an_openvino_card_compiles_its_file() -> None:
    card = make_card(pruned("bert"), "openvino_model.xml")
    assert 'compile_model("openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})' in card.text
    assert '"bf16"' in card.text
    assert (card.data.library_name, card.data.tags[-1]) == ("openvino", "openvino")


@pytest.mark.parametrize("name", ["/models/bert", "./bert", "~/bert", "models/mine/bert"])
def test_a_local_path_is_left_out(name: str) -> None:
    card = make_card(pruned("bert"), "huggingface", CardFacts(base_model=name))
    assert card.data.base_model is None
    assert name not in str(card)


def test_a_local_folder_that_looks_like_a_hub_name_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    assert make_card(pruned("bert"), "dense", CardFacts("runs/mine")).data.base_model is None
