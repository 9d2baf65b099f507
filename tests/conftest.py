"""Fixtures shared by all tests: tiny random models and data made on the fly, nothing from the network."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import torch
from transformers import AutoConfig, AutoModel, BertTokenizer

from pgb_lightning.tasks import GLUETask, get_task

GOOD = ["good", "great", "lovely", "bright", "warm", "clever"]
BAD = ["bad", "poor", "dull", "cold", "weak", "empty"]
FILLER = ["the", "a", "film", "plot", "actor", "scene", "is", "was", "and", "very", "quite", "so"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER]

# Widths are multiples of 12, so that every group number from 1 to 4 and 6 divides them.
TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
    },
    "roberta": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 66,
        "type_vocab_size": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "distilbert": {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 64},
}


@pytest.fixture(scope="session", autouse=True)
def private_dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what `datasets` caches out of the user's home, and its progress bars out of the log."""
    cache = tmp_path_factory.mktemp("datasets-cache")
    usual = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    yield cache
    datasets.config.HF_DATASETS_CACHE = usual


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make (once a session) a folder with a tiny random encoder and its WordPiece tokenizer.

    `tiny_model_folder("bert")`, "roberta" or "distilbert"; further keywords change the model's configuration.
    """
    made: dict[str, Path] = {}

    def make(model_type: str = "bert", **changes: Any) -> Path:
        key = f"{model_type}-{sorted(changes.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{model_type}")
            settings = {
                "vocab_size": len(VOCABULARY),
                "pad_token_id": 0,
                **TINY_CONFIGS[model_type],
                **changes,
            }
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                AutoModel.from_config(AutoConfig.for_model(model_type, **settings)).save_pretrained(folder)
            names = ["input_ids", *(["token_type_ids"] if model_type == "bert" else []), "attention_mask"]
            BertTokenizer(
                vocab={word: index for index, word in enumerate(VOCABULARY)},
                model_max_length=64,
                model_input_names=names,
            ).save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


def sentence(rng: random.Random, positive: bool, length: int | None = None) -> str:
    """Make a sentence whose label can be read from two of its words."""
    words = rng.choices(GOOD if positive else BAD, k=2) + rng.choices(
        FILLER, k=(length or rng.randint(3, 12))
    )
    rng.shuffle(words)
    return " ".join(words)


def glue_rows(task: GLUETask, count: int, seed: int = 0) -> datasets.Dataset:
    """Make `count` rows in the Hub's schema of `task`; 70 % of the rows have label 0 where labels are classes."""
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


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make (once a session) a folder of parquet files for a GLUE task: `glue_folder("sst2", train=100)`."""
    made: dict[tuple[str, int, int], Path] = {}

    def make(name: str = "sst2", train: int = 100, validation: int = 40) -> Path:
        key = (name, train, validation)
        if key not in made:
            task = get_task(name)
            folder = tmp_path_factory.mktemp(f"glue-{name}")
            glue_rows(task, train, seed=1).to_parquet(folder / "train.parquet")
            for number, split in enumerate(task.validation_splits):
                glue_rows(task, validation, seed=2 + number).to_parquet(folder / f"{split}.parquet")
            made[key] = folder
        return made[key]

    return make
