"""Tiny random models and artificial data that are easy to learn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import pytest
import yaml

from pgb_lightning.cli.main import main
from pgb_lightning.glue_tasks import GLUETask

GOOD = ["good", "great", "lovely", "bright", "warm", "clever"]
BAD = ["bad", "poor", "dull", "cold", "weak", "empty"]
FILLER = ["the", "a", "film", "plot", "actor", "scene", "is", "was", "and", "very", "quite", "so"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER]


def sentence(rng: random.Random, positive: bool) -> str:
    """Return a sentence with two words that determine its label."""
    words = rng.choices(GOOD if positive else BAD, k=2) + rng.choices(FILLER, k=rng.randint(3, 12))
    rng.shuffle(words)
    return " ".join(words)


def glue_rows(task: GLUETask, count: int, seed: int = 0) -> datasets.Dataset:
    """Return ``count`` rows with the Hub's columns of a task. If labels are classes, 70 % of them are 0."""
    rng = random.Random(seed)
    columns: dict[str, list[Any]] = {name: [] for name in (*task.text_columns, "label")}
    for row in range(count):
        label = 0 if row % 10 < 7 else 1 + row % max(task.num_labels - 1, 1)
        for column in task.text_columns:
            columns[column].append(sentence(rng, positive=bool(label)))
        columns["label"].append(round(rng.uniform(0, 5), 1) if task.is_regression else label)
    columns["idx"] = list(range(count))
    rows = datasets.Dataset.from_dict(columns)
    if task.is_regression:
        return rows.cast_column("label", datasets.Value("float32"))
    names = [f"class_{index}" for index in range(task.num_labels)]
    return rows.cast_column("label", datasets.ClassLabel(names=names))


def squad_rows(count: int, version: str = "1.1", seed: int = 0, words: int = 20) -> datasets.Dataset:
    """Return questions with the Hub's columns. The answer is the two words after the word in the question."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        context = [rng.choice(FILLER) for _ in range(words)]
        position = rng.randrange(words - 3)
        keyword = rng.choice(GOOD)
        context[position : position + 3] = [keyword, *rng.choices(BAD, k=2)]
        begin = len(" ".join(context[: position + 1])) + 1
        answer = " ".join(context[position + 1 : position + 3])
        has_answer = version == "1.1" or number % 3
        if not has_answer:
            context[position] = "film"
        answers = (
            {"text": [answer] * 2, "answer_start": [begin] * 2} if has_answer else {"text": [], "answer_start": []}
        )
        texts = {"context": " ".join(context), "question": f"what is {keyword}"}
        rows.append({"id": f"id{number}", "title": f"title{number % 5}", **texts, "answers": answers})
    features = {name: datasets.Value("string") for name in ("id", "title", "context", "question")}
    # As on the Hub. Before version 4 of datasets this is one feature, since then it is a dict of two.
    lists = datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")})
    return datasets.Dataset.from_list(rows, datasets.Features({**features, "answers": lists}))


def squad_folder(folder: Path, version: str = "1.1", train: int = 40, validation: int = 20) -> Path:
    """Create a folder with both splits."""
    folder.mkdir()
    squad_rows(train, version, seed=1).to_parquet(folder / "train.parquet")
    squad_rows(validation, version, seed=2, words=120).to_parquet(folder / "validation.parquet")
    return folder


def quiet_trainer(**settings: Any) -> L.Trainer:
    """Return a Trainer that writes and prints nothing."""
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return L.Trainer(**{**defaults, **settings})


def print_config(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Return the configuration that a command prints with ``--print_config``."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*args, "--print_config"])
    assert not stop.value.code
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config
