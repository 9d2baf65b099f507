"""The metadata of model cards, checked with the classes of huggingface_hub, and pushing a folder without network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from helpers.tiny import pruned
from huggingface_hub import EvalResult, HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id

from pgb_lightning.export import CardFacts, export_huggingface, push_to_hub
from pgb_lightning.export.card import make_card
from pgb_lightning.export.inherited_card import read_inherited
from pgb_lightning.packaged import MINILM_ALIAS

FACTS = CardFacts(
    base_model="bert-base-uncased",
    task="mrpc",
    scores={"val_accuracy": 0.875, "val_f1": 0.9, "val_loss": 0.3},
    dense_scores={"val_accuracy": 0.885},
    dataset="nyu-mll/glue:mrpc",
    split="validation",
    inherited={"license": "apache-2.0", "language": "en"},
)


def reread(card: ModelCard) -> ModelCard:
    """Read a card as the Hub's client does, and check what the Hub requires of each entry."""
    text = str(card)
    again = ModelCard(text)
    assert again.data.to_dict() == card.data.to_dict()
    data = yaml.safe_load(text.split("---\n")[1])
    assert all(value not in (None, "", []) for value in data.values())
    for name in [*data.get("datasets", []), *([data["base_model"]] if "base_model" in data else [])]:
        validate_repo_id(name)
    for entry in data.get("model-index", []):
        assert entry["name"]
        for result in entry["results"]:
            assert result["task"]["type"] == data["pipeline_tag"]
            assert {"name", "type"} <= result["dataset"].keys()
            assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
    return again


def test_scores_are_in_the_index_with_their_data_set() -> None:
    card = reread(make_card(pruned("bert"), "huggingface", FACTS))
    data = card.data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", "en", "bert-base-uncased")
    assert (data.library_name, data.pipeline_tag, data.datasets) == (
        "transformers",
        "text-classification",
        ["nyu-mll/glue"],
    )
    assert data.metrics == ["accuracy", "f1"]
    results: list[EvalResult] = data.eval_results
    assert [(each.metric_type, each.metric_value) for each in results] == [("accuracy", 0.875), ("f1", 0.9)]
    assert {(each.dataset_type, each.dataset_config, each.dataset_split) for each in results} == {
        ("nyu-mll/glue", "mrpc", "validation")
    }
    assert "| val_accuracy | 0.885 | 0.875 | -0.0100 |" in card.text
    assert "| val_f1 |  | 0.9 |  |" in card.text


def test_what_is_unknown_is_left_out() -> None:
    data = reread(make_card(pruned("bert"), "dense")).data.to_dict()
    assert data.keys() == {"library_name", "pipeline_tag", "tags"}
    local = CardFacts(scores={"accuracy": 0.5}, dataset="./reviews.csv")
    data = reread(make_card(pruned("bert"), "huggingface", local)).data.to_dict()
    assert data["metrics"] == ["accuracy"]
    assert not data.keys() & {"model-index", "datasets", "license"}


@pytest.mark.parametrize("kind", ["onnx/model_quantized.onnx", "openvino_model.xml"])
def test_integers_do_not_claim_the_scores_of_single_precision(kind: str) -> None:
    assert "model-index" in reread(make_card(pruned("bert"), kind, FACTS)).data.to_dict()
    card = reread(make_card(pruned("bert"), kind, FACTS, is_quantized=True))
    assert not card.data.to_dict().keys() & {"model-index", "metrics"}
    assert "before the weights were quantized" in card.text


def test_an_embedding_model_is_one_of_sentence_transformers() -> None:
    facts = CardFacts(is_sentence_embedding=True, scores={"spearman": 0.8}, dataset="nyu-mll/glue:stsb")
    card = reread(make_card(pruned("bert"), "huggingface", facts))
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert "sentence-transformers" in card.data.tags
    assert card.text.index("import pgb_lightning") < card.text.index("SentenceTransformer(")


@pytest.mark.parametrize("kind", ["onnx/model.onnx", "openvino_model.xml", "model.pt2"])
def test_the_card_says_that_other_runtimes_do_not_pool(kind: str) -> None:
    text = make_card(pruned("bert"), kind, CardFacts(is_sentence_embedding=True)).text
    assert "1_Pooling/config.json" in text
    assert "pipeline('sentence-similarity'" not in text


def test_the_license_is_that_of_the_dense_model(tmp_path: Path) -> None:
    assert read_inherited(MINILM_ALIAS)["license"] == "apache-2.0"
    assert read_inherited(str(tmp_path)) == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: bert-base-uncased\ntags: [x]\n---\n")
    inherited = read_inherited(str(tmp_path))
    assert inherited == {"license": "mit", "base_model": "bert-base-uncased"}
    data = reread(make_card(pruned("bert"), "dense", CardFacts(str(tmp_path), inherited=inherited))).data
    assert (data.license, data.base_model) == ("mit", "bert-base-uncased")
    (tmp_path / "README.md").write_text("---\n- a list\n---\n")
    assert read_inherited(str(tmp_path)) == {}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log in, and let the Hub be contacted. Tests replace the functions that would contact it."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
def test_a_folder_is_pushed_after_its_card_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_huggingface(pruned("bert"), tmp_path / "out", card=CardFacts(repo_id="me/small"))
    assert 'pipeline("text-classification", "me/small")' in (folder / "README.md").read_text()
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(ModelCard, "validate", lambda card: calls.append(("validate", card.data.pipeline_tag)))

    def create(api: HfApi, repo_id: str, **settings: Any) -> Any:
        calls.append(("create", settings["private"]))
        return SimpleNamespace(repo_id=repo_id)

    def upload(api: HfApi, **settings: Any) -> Any:
        calls.append(("upload", (settings["repo_id"], settings["folder_path"], settings["ignore_patterns"])))
        return SimpleNamespace(commit_url="an address")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert push_to_hub(folder, "me/small", private=True) == "an address"
    assert calls == [
        ("validate", "text-classification"),
        ("create", True),
        ("upload", ("me/small", folder, ["run/*", "report/*"])),
    ]


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("error", [ValueError("license is not valid"), OSError("no connection"), RuntimeError("503")])
@pytest.mark.parametrize("step", ["validate", "create_repo"])
def test_an_error_of_the_hub_names_the_setting_and_the_remedy(
    step: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_huggingface(pruned("bert"), tmp_path / "out")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ModelCard, "validate", lambda card: None)
    monkeypatch.setattr(ModelCard if step == "validate" else HfApi, step, fail)
    with pytest.raises(ValueError, match=rf"push_to_hub='me/small' .*out' is complete.* {error}"):
        push_to_hub(folder, "me/small")


def test_a_hub_that_may_not_be_contacted_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"push_to_hub='me/small' .*HF_HUB_OFFLINE"):
        push_to_hub(tmp_path, "me/small")


@pytest.mark.usefixtures("online")
def test_pushing_needs_a_name_a_token_and_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match=r"push_to_hub='a/b/c'"):
        push_to_hub(tmp_path, "a/b/c")
    with pytest.raises(ValueError, match=r"push_to_hub='me/small' .*HF_TOKEN"):
        push_to_hub(tmp_path, "me/small")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    with pytest.raises(ValueError, match=r"folder=.*README\.md"):
        push_to_hub(tmp_path, "me/small")
