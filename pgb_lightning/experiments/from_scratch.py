r"""Train a small encoder of a new kind from scratch on a GLUE task, then compare pruning methods on it, one-shot.

For encoders whose pretrained weights are not available. By default, the vocabulary is that of the packaged MiniLM.

Example:
    ::

        python -m pgb_lightning.experiments.from_scratch modernbert runs/modernbert --data_dir DIR

    Training only, of a DeBERTa with the settings of version 3::

        python -m pgb_lightning.experiments.from_scratch deberta-v2 runs/deberta --data_dir DIR --seeds []
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from rich.console import Console
from transformers import AutoTokenizer

from pgb_lightning.config import PruningConfig
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.experiments.ablations import check_methods
from pgb_lightning.experiments.ablations import run as compare
from pgb_lightning.experiments.records import Result
from pgb_lightning.experiments.training import train
from pgb_lightning.modules import TextClassification
from pgb_lightning.packaged import MINILM_ALIAS, resolve_model

#: Sizes of all families.
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}

#: Settings of each family. Those that are not sizes are those of the published models, with shorter windows and
#: fewer buckets, so that sentences of 10 to 60 tokens are affected by them.
FAMILIES: dict[str, dict[str, Any]] = {
    "modernbert": {
        "intermediate_size": 384,
        "global_attn_every_n_layers": 3,
        "local_attention": 16,
        "embedding_dropout": 0.1,
        "mlp_dropout": 0.1,
        "attention_dropout": 0.1,
        "classifier_pooling": "mean",
    },
    "deberta-v2": {
        "intermediate_size": 1024,
        "type_vocab_size": 0,
        "position_biased_input": False,
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 32,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "pooler_dropout": 0.1,
        "pooler_hidden_act": "gelu",
    },
}

#: PGB, the same heads and neurons or groups without compensation, and masks and heads by Fisher information and
#: magnitude.
METHODS = ("default", "paper", "default, no compensation", "fisher", "magnitude", "kwon")


def run(
    family: str,
    out_dir: str,
    data_dir: str | None = None,
    task: str = "sst2",
    epochs: int = 2,
    learning_rate: float = 5e-4,
    batch_size: int = 64,
    training_seed: int = 0,
    max_train_samples: int | None = None,
    tokenizer: str = MINILM_ALIAS,
    settings: dict[str, Any] | None = None,
    ratios: tuple[float, ...] = (0.5,),
    methods: tuple[str, ...] = METHODS,
    seeds: tuple[int, ...] = (0, 1, 2),
    calibration_size: int | None = None,
    num_threads: int = 1,
) -> list[Result]:
    """Train a model unless ``out_dir`` has one, then prune it by all methods, once for each draw of calibration rows.

    The folder gets the tokenizer, ``dense.ckpt``, ``dense.json`` (epochs, seconds, metrics) and ``pruned.jsonl``.

    Args:
        family: ``"modernbert"`` or ``"deberta-v2"``.
        out_dir: Folder for the checkpoint and the results. Existing ones are reused.
        data_dir: Local folder of parquet files; the Hub if not given.
        task: A GLUE task.
        epochs: Epochs of training.
        learning_rate: Peak learning rate of training.
        batch_size: Rows in a training batch; batches have rows of similar lengths.
        training_seed: Seed of the initial weights, the order of the rows and dropout.
        max_train_samples: Number of training rows, from which the calibration rows are drawn too; all if not given.
        tokenizer: The model whose tokenizer is used: a Hub name, a local folder, or ``"minilm-l6"``.
        settings: Settings of the model's configuration that replace those of :data:`SIZES` and :data:`FAMILIES`.
        ratios: Values of ``pruning_ratio``.
        methods: Names of methods and baselines.
        seeds: Seeds for drawing the calibration rows. Without any, the model is only trained.
        calibration_size: Number of calibration rows; 2,048 if not given.
        num_threads: CPU threads.

    Returns:
        The results of :func:`pgb_lightning.experiments.ablations.run`.

    Raises:
        ValueError: If the family or a method is unknown, or ``epochs``, ``learning_rate`` or a ratio is out of range.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown. Choose from {', '.join(map(repr, FAMILIES))}.")
    if epochs < 1:
        raise ValueError(f"epochs={epochs} is out of range. Use 1 or more.")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate={learning_rate} is out of range. Use a value above 0.")
    check_methods(methods)
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # raises if out of range
    torch.set_num_threads(num_threads)
    folder = Path(out_dir)
    checkpoint, vocabulary = folder / "dense.ckpt", folder / "tokenizer"
    if not (folder / "dense.json").is_file():
        special = _save_tokenizer(tokenizer, vocabulary)
        data = GLUEDataModule(
            task,
            str(vocabulary),
            data_dir,
            batch_size=batch_size,
            group_by_length=True,
            max_train_samples=max_train_samples,
            seed=training_seed,
        )
        L.seed_everything(training_seed)
        config = {"model_type": family, **special, **SIZES, **FAMILIES[family], **(settings or {})}
        module = TextClassification(str(vocabulary), task=task, learning_rate=learning_rate, hf_config=config)
        start = time.monotonic()
        _, metrics = train(module, data, epochs, checkpoint)
        trained = {"family": family, "epochs": epochs, "seconds": time.monotonic() - start, "metrics": metrics}
        (folder / "dense.json").write_text(json.dumps(trained) + "\n")
    Console().print_json((folder / "dense.json").read_text())
    if not seeds:
        return []
    return compare(
        task,
        (str(checkpoint),) * len(seeds),
        data_dir,
        ratios=ratios,
        methods=methods,
        max_train_samples=max_train_samples,
        calibration_size=calibration_size,
        seed=seeds,
        num_threads=num_threads,
        out=str(folder / "pruned.jsonl"),
    )


def _save_tokenizer(name: str, folder: Path) -> dict[str, int]:
    """Save a tokenizer for models without token types; return the settings that depend on it."""
    inputs = ["input_ids", "attention_mask"]
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(name), model_input_names=inputs)
    tokenizer.save_pretrained(folder)
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
    }


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.from_scratch")
