"""What ``pgb prune`` refuses, before any work if it can be known then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.text_tables import reviews, write
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from pgb_lightning.cli.main import main
from pgb_lightning.cli.prune import command, run_prune
from pgb_lightning.packaged import read_tokenizer

Prune = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recover": "retrain"}, r"recover='retrain'"),
        ({"epochs": 0}, r"epochs=0 .*recover='none'"),
        ({"learning_rate": -1.0}, r"learning_rate=-1\.0"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan"),
        ({"precision": "17-mixed"}, r"precision='17-mixed'"),
        ({"seed": -1}, r"seed=-1"),
        ({"pruning_ratio": 1.2}, r"pruning_ratio=1\.2"),
        ({"pruning_ratio": 0.5, "target_speedup": 2.0}, r"pruning_ratio=0\.5 and target_speedup=2\.0"),
        ({"latency_runtime": "onnxruntime"}, r"latency_runtime='onnxruntime'.*budget='parameters'"),
        ({"target_speedup": 2.0, "latency_runtime": "tvm"}, r"latency_runtime='tvm'"),
        ({"export": ["tflite"]}, r"export has 'tflite'"),
        ({"push_to_hub": "a/b/c"}, r"push_to_hub='a/b/c'"),
        ({"rows": reviews(48), "recover": "finetune"}, r"recover='finetune' .*label_column"),
        ({"rows": reviews(48, label=lambda row: "fair")}, r"'fair'.*'good', 'bad'"),
        ({"label_column": "stars"}, r"label_column='stars'"),
        ({"model": "missing.ckpt"}, r"model='missing\.ckpt' is not a file"),
        ({"model": "missing/"}, "model='missing/'.* no such folder"),
        ({"model": "runs/a/missing"}, "model='runs/a/missing'.* no such folder"),
    ],
)
def test_what_cannot_be_right_is_refused_before_any_work(
    settings: dict[str, Any], message: str, prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "evaluate", None)
    monkeypatch.setattr(command, "estimate", None)
    with pytest.raises(MisconfigurationException, match=message):
        prune(**settings)
    assert not (tmp_path / "out").exists()  # the next try may have other settings


def test_a_model_that_cannot_take_the_rows_is_refused_before_any_work(
    prune: Prune, fine_tuned: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "estimate", None)
    model = fine_tuned(names=("good", "bad"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_max_length = 10**30  # as of models that were saved without it
    tokenizer.save_pretrained(model)
    small = AutoConfig.from_pretrained(model, max_position_embeddings=16)
    AutoModelForSequenceClassification.from_config(small).save_pretrained(model)
    with pytest.raises(MisconfigurationException, match=r"max_length=32 .*1 to 16"):
        prune(model=model)
    few = AutoConfig.from_pretrained(model, max_position_embeddings=64, vocab_size=9)
    AutoModelForSequenceClassification.from_config(few).save_pretrained(model)
    with pytest.raises(MisconfigurationException, match=r"model='.*' has 9 tokens"):
        prune(model=model)
    (Path(model) / "tokenizer.json").unlink()
    with pytest.raises(MisconfigurationException, match=r"^model='.*tokenizer"):
        prune(model=model)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_trained_head_is_refused(
    prune: Prune, tiny_model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(MisconfigurationException, match=r"model=.*not fine-tuned"):
        prune(model=str(tiny_model_folder("bert")))
    folder = tmp_path / "headless"
    AutoModel.from_pretrained(tiny_model_folder("bert")).save_pretrained(folder)
    read_tokenizer(str(tiny_model_folder("bert"))).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MisconfigurationException, match=r"model=.*classifier"):
        prune(model=str(folder), output_dir="other")


@pytest.mark.parametrize(
    ("auto", "task"),
    [(AutoModelForMaskedLM, "masked language modeling"), (AutoModelForMultipleChoice, "multiple choice")],
)
def test_other_heads_are_refused_by_name(auto: Any, task: str, prune: Prune, fine_tuned: Callable[..., str]) -> None:
    with pytest.raises(MisconfigurationException, match=rf"model='.*' is a Bert.* {task} .*prune\(model, batches\)"):
        prune(model=fine_tuned(auto))


def test_the_command_line_exits_with_one_line(
    fine_tuned: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(
            ["prune", "--model", fine_tuned(), "--data", str(tmp_path / "no.csv"), "--output_dir", str(tmp_path / "o")]
        )
    assert str(raised.value).startswith("pgb: data=")
    assert "\n" not in str(raised.value)


def test_the_home_folder_is_meant_by_a_tilde(
    prune: Prune, fine_tuned: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = write(tmp_path / "rows.csv", reviews(48, label=lambda row: ("bad", "good")[row % 2]))
    with pytest.raises(MisconfigurationException, match=r"output_dir='.*model' is not empty"):
        run_prune(fine_tuned(names=("good", "bad")), str(rows), "~/model", accelerator="cpu")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_that_are_not_finite_are_not_exported(precision: str, prune: Prune, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=rf"learning_rate=1000000\.0 .*precision='{precision}'"):
        prune(epochs=1, learning_rate=1e6, precision=precision)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("settings", [{"pruning_ratio": 0.6}, {"pruning_ratio": 0.2, "recover": "none"}])
def test_a_pruned_model_is_not_its_own_teacher_and_loses_no_less(
    settings: dict[str, Any],
    prune: Prune,
    pruned_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "estimate", None)
    model = str(pruned_checkpoint(preset="default"))
    with pytest.raises(MisconfigurationException, match="already pruned"):
        prune(reviews(48, label=lambda row: row % 2), model=model, **settings)
    assert not (tmp_path / "out").exists()
