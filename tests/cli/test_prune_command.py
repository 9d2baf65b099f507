"""The command ``pgb prune``: what it writes for each task, and that it continues."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from helpers.text_tables import reviews
from huggingface_hub import ModelCard
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from pgb_lightning import PruningPlan
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.cli.main import run
from pgb_lightning.cli.prune import command
from pgb_lightning.cli.prune.settings import PruneSettings
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules.pooling import Pooling, read_pooling, write_pooling
from pgb_lightning.modules.scoring import agreement
from pgb_lightning.packaged import read_tokenizer
from pgb_lightning.surgery.checks import is_pruned

Prune = Callable[..., dict[str, Any]]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(5, 14)[None]).logits


def test_the_folder_is_a_pruned_model_with_its_plan_report_and_scores(prune: Prune, tmp_path: Path) -> None:
    result = prune(pruning_ratio=0.7, epochs=2)
    out = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert is_pruned(find_encoder(model))
    assert model.config.id2label == {0: "good", 1: "bad"}
    assert AutoTokenizer.from_pretrained(out).get_vocab() == read_tokenizer(str(tmp_path / "model")).get_vocab()
    plan = PruningPlan.load(out / "plan.json")
    assert result["removed"] == plan.pruning_ratio == pytest.approx(0.7, abs=0.02)
    assert (out / "report" / "index.html").is_file()
    assert json.loads((out / "run" / "scores.json").read_text()) == result
    for stage in ("dense", "pruned", "recovered"):
        assert {"val_accuracy", "val_loss"} <= result[stage].keys()
    assert 0 <= result["agreement with dense"] <= 1
    best = torch.load(out / "run" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(model.state_dict()["classifier.weight"], best["model.classifier.weight"])
    assert not (out / "run" / "teacher").exists()
    card = ModelCard.load(out / "README.md")
    [before, after] = (result[stage]["val_accuracy"] for stage in ("dense", "recovered"))
    assert f"| accuracy | {before:.4g} | {after:.4g} |" in card.text
    assert (card.data.metrics, card.data.base_model, card.data.eval_results) == (["accuracy"], None, None)


def test_the_pruned_weights_are_kept_if_no_epoch_is_better(prune: Prune, tmp_path: Path) -> None:
    result = prune(pruning_ratio=0.7, epochs=1, learning_rate=1e-12)
    assert torch.load(tmp_path / "out" / "run" / "best.ckpt", weights_only=True)["global_step"] == 0
    assert result["recovered"]["val_accuracy"] == result["pruned"]["val_accuracy"]


def test_the_printed_configuration_is_that_of_the_same_run(
    prune: Prune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(epochs=1)
    file = tmp_path / "out" / "run" / "fit.yaml"
    assert file.read_text().partition("\n\n")[2].strip() in capsys.readouterr().out
    first = torch.load(tmp_path / "out" / "run" / "last.ckpt", weights_only=True)["state_dict"]
    config = yaml.safe_load(file.read_text().replace(str(tmp_path / "out"), str(tmp_path / "again")))
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    run(["fit", "--config", str(tmp_path / "fit.yaml")])
    second = torch.load(tmp_path / "again" / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("settings", "num_rows", "epochs"),
    [
        ({}, 9_999, 10),
        ({}, 10_000, 3),
        ({"recover": "finetune"}, 100, 3),
        ({"recover": "none"}, 100, 0),
        ({"epochs": 2}, 100, 2),
        ({"epochs": 2, "recover": "none"}, 100, 0),
    ],
)
def test_few_rows_are_recovered_on_for_more_epochs(settings: dict[str, Any], num_rows: int, epochs: int) -> None:
    assert PruneSettings("model", "rows.csv", "out", **settings).num_epochs(num_rows) == epochs


def test_the_number_of_epochs_follows_from_the_training_rows(
    prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune()
    config = yaml.safe_load((tmp_path / "out" / "run" / "fit.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 10
    monkeypatch.setattr("pgb_lightning.cli.prune.settings.FEW_ROWS", 10)
    prune(output_dir="other")
    config = yaml.safe_load((tmp_path / "other" / "run" / "fit.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 3


def test_rows_without_labels_are_enough(prune: Prune, tmp_path: Path) -> None:
    result = prune(reviews(48), name="rows.jsonl", epochs=1)
    assert result["dense"] == {}
    assert result["agreement with dense"] > 0
    assert is_pruned(find_encoder(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")))


@pytest.mark.parametrize("recover", ["none", "distill"])
@pytest.mark.parametrize("task", ["regression", "several labels", "entities", "parts of speech"])
def test_other_tasks(task: str, recover: str, prune: Prune, fine_tuned: Callable[..., str], tmp_path: Path) -> None:
    auto: Any = AutoModelForSequenceClassification
    if task == "regression":
        rows, metric = reviews(48, score=lambda row: row % 5 / 4), "val_spearman"
        fine_tuned(num_labels=1, initializer_range=0.2)
    elif task == "several labels":
        rows, metric = reviews(48, labels=lambda row: ["a", "b"][: row % 3]), "val_f1_micro"
        fine_tuned(names=("b", "a"), problem_type="multi_label_classification", initializer_range=0.2)
    elif task == "entities":
        auto, metric = AutoModelForTokenClassification, "val_f1"
        rows = [{"tokens": ["a", "good", "film"], "ner_tags": ["O", "B-x", "I-x"]} for _ in range(48)]
        fine_tuned(auto, names=("O", "B-x", "I-x"), initializer_range=0.2)
    else:
        auto, metric = AutoModelForTokenClassification, "val_f1_macro"
        rows = [{"tokens": ["a", "good", "film"], "tags": ["DET", "ADJ", "NOUN"]} for _ in range(48)]
        fine_tuned(auto, names=("ADJ", "DET", "NOUN"), initializer_range=0.2)
    result = prune(rows, name="rows.jsonl", recover=recover, epochs=1)
    assert metric in result["dense"]
    assert metric in result["exported" if recover == "none" else "recovered"]
    assert (tmp_path / "out" / "run" / "best.ckpt").is_file() == (recover != "none")
    model = auto.from_pretrained(tmp_path / "out")
    assert is_pruned(find_encoder(model))
    assert model.num_labels == {"regression": 1, "several labels": 2}.get(task, 3)


@pytest.mark.parametrize("recover", ["none", "distill"])
def test_an_embedding_model_keeps_its_pooling(
    recover: str, prune: Prune, tiny_model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "embedder"
    AutoModel.from_pretrained(tiny_model_folder("bert", initializer_range=0.2)).save_pretrained(folder)
    read_tokenizer(str(tiny_model_folder("bert"))).save_pretrained(folder)
    write_pooling(folder, Pooling("cls", normalize=True), width=24, max_length=32)
    rows = [
        {"sentence1": f"good {'very ' * (row % 4)}film", "sentence2": f"a {'bad ' * (row % 3)}film", "score": row % 5}
        for row in range(60)
    ]
    result = prune(rows, model=str(folder), recover=recover, epochs=1)
    assert {"val_spearman"} == result["dense"].keys()
    assert 0 < result["agreement with dense"] <= 1.0001
    assert read_pooling(str(tmp_path / "out")) == Pooling("cls", normalize=True)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert is_pruned(find_encoder(model))
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("a good film", return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.eval()(**tokens).last_hidden_state[:, 0], dim=-1)
    found = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(["a good film"])
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_is_continued_and_gives_the_same_model(
    prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(output_dir="whole", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(PGBCallback, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(SystemExit):
            prune(epochs=2)
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(MisconfigurationException, match=r"output_dir=.*epochs=3, not 2"):
        prune(epochs=3)
    monkeypatch.setattr(command, "estimate", None)  # calling it would fail: the dense model is scored already
    prune(epochs=2)
    whole, continued = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("whole", "out")
    )
    assert torch.equal(logits(whole), logits(continued))
    with pytest.raises(MisconfigurationException, match=r"output_dir=.*finished"):
        prune(epochs=2)


def test_a_run_that_computed_nothing_may_be_started_with_other_settings(
    prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_at("evaluate", monkeypatch):
        prune(recover="none")
    assert (tmp_path / "out" / "run" / "settings.json").is_file()
    prune(recover="none", pruning_ratio=0.3, text_columns=("review",))


def test_a_run_is_continued_with_the_same_rows_only(
    prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_at("write_all", monkeypatch):
        prune(recover="none", text_columns=("review",))
    with pytest.raises(MisconfigurationException, match=r"data='.*rows\.csv' has other rows"):
        prune(reviews(48, label=lambda row: ("good", "bad")[row % 2]), recover="none", text_columns=("review",))
    prune(recover="none", text_columns=("review",))


@pytest.mark.parametrize("recover", ["none", "finetune"])
def test_a_run_is_continued_with_the_same_model_only(
    recover: str, prune: Prune, fine_tuned: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_at("write_all", monkeypatch):
        prune(recover=recover, epochs=1)
    fine_tuned(names=("good", "bad"), initializer_range=0.1)
    with pytest.raises(MisconfigurationException, match=r"model='.*' has other weights .*output_dir="):
        prune(recover=recover, epochs=1)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("normalize", [True, False])
def test_a_run_that_stops_while_it_writes_its_folder_is_continued(
    normalize: bool,
    prune: Prune,
    tiny_model_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "embedder"
    AutoModel.from_pretrained(tiny_model_folder("bert", initializer_range=0.2)).save_pretrained(folder)
    read_tokenizer(str(tiny_model_folder("bert"))).save_pretrained(folder)
    write_pooling(folder, Pooling("cls", normalize=normalize), width=24, max_length=32)
    move = shutil.move

    def stop_at_the_last(source: Path | str, target: Path | str) -> None:
        if Path(source).name == "config.json":
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", stop_at_the_last)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                prune(model=str(folder), recover="none")
    prune(model=str(folder), recover="none")
    parts = ["1_Pooling", *(["2_Normalize"] if normalize else [])]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"run", "report", *parts}
    assert not [path for part in parts for path in (tmp_path / "out" / part).iterdir() if path.is_dir()]


@contextmanager
def stopped_at(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the command where it calls a function."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, name, stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_paths_may_have_brackets_and_be_paths(prune: Prune, fine_tuned: Callable[..., str], tmp_path: Path) -> None:
    model = Path(fine_tuned(names=("good", "bad"))).rename(tmp_path / "mö del [1]")
    prune(model=model, output_dir="o [a] [/b]", name="rows [c].csv", recover="none")
    assert (tmp_path / "o [a] [/b]" / "config.json").is_file()


def test_labels_without_a_correlation_are_no_obstacle(
    prune: Prune, fine_tuned: Callable[..., str], tmp_path: Path
) -> None:
    fine_tuned(num_labels=1, initializer_range=0.2)
    result = prune(reviews(48, score=lambda row: 1), recover="none")
    assert result["dense"]["val_loss"] > 0
    written = json.loads((tmp_path / "out" / "run" / "scores.json").read_text(), parse_constant=pytest.fail)
    assert written["dense"]["val_pearson"] == "NaN"


def stop_in_second_epoch(self: PGBCallback, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    if trainer.current_epoch == 1:
        raise KeyboardInterrupt


def test_a_checkpoint_of_a_fit_can_be_pruned(
    prune: Prune, pruned_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    prune(reviews(48, label=lambda row: row % 2), model=str(pruned_checkpoint("dense")), recover="none")
    assert is_pruned(find_encoder(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")))


def test_other_formats_are_written_beside_the_model(prune: Prune, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    prune(recover="none", export=["onnx", "onnx-int8"])
    assert list((tmp_path / "out" / "onnx-int8").rglob("*.onnx"))
    session = onnxruntime.InferenceSession(next((tmp_path / "out" / "onnx").rglob("*.onnx")))
    names = {each.name for each in session.get_inputs()}
    inputs = {"input_ids": torch.arange(5, 14)[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    inputs["token_type_ids"] = torch.zeros(1, 9, dtype=torch.long)
    [found] = session.run(["logits"], {name: value.numpy() for name, value in inputs.items() if name in names})
    expected = logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_agreement_is_that_of_rows_or_tokens() -> None:
    rows = [torch.tensor([0, 1, 1])], [torch.tensor([0, 1, 0])]
    assert agreement(*rows, "single_label_classification") == pytest.approx(2 / 3)
    words = [torch.tensor([[0, 1, -100]])], [torch.tensor([[0, 2, -100]])]
    assert agreement(*words, "token_classification") == 0.5
    several = [torch.tensor([[0, 1], [1, 1]])], [torch.tensor([[0, 1], [1, 0]])]
    assert agreement(*several, "multi_label_classification") == 0.5
    values = [torch.tensor([1.0, 2.0, 3.0])], [torch.tensor([10.0, 20.0, 30.0])]
    assert agreement(*values, "regression") == pytest.approx(1.0, abs=1e-5)
