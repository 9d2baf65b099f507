"""Made-up models and data for the tests: tiny, random, and easy to learn from."""

from __future__ import annotations

import random
from typing import Any

import datasets
import lightning as L

from pgb_lightning.tasks import GLUETask

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


def sentence(rng: random.Random, positive: bool) -> str:
    """Make a sentence whose label can be read from two of its words."""
    words = rng.choices(GOOD if positive else BAD, k=2) + rng.choices(FILLER, k=rng.randint(3, 12))
    rng.shuffle(words)
    return " ".join(words)


def glue_rows(task: GLUETask, count: int, seed: int = 0) -> datasets.Dataset:
    """Make `count` rows in the Hub's schema of `task`; 70 % have label 0 where labels are classes."""
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


def quiet_trainer(**settings: Any) -> L.Trainer:
    """Make a Trainer that writes and prints nothing."""
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return L.Trainer(**{**defaults, **settings})
