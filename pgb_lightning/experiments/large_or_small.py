r"""Prune a large model, or fine-tune a small one? Both on the same rows, at the same sizes, timed in one run.

Example:
    ::

        python -m pgb_lightning.experiments.large_or_small sst2 runs/large-or-small FOLDER --data_dir DIR \
          --kept_parameters [10.6e6,25e6,42e6] --precision bf16-mixed --data_options '{"group_by_length": true}'

The folder gets the checkpoints, ``results.jsonl`` with one line per model and seed, and ``latency.json``. A run
continues with what is missing; latency is measured each time, of the models of the first seed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from pgb_lightning.atomic_write import write_atomically
from pgb_lightning.benchmark.measures import forward_times
from pgb_lightning.cost import dense_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.cells import (
    check_methods,
    check_positive,
    check_recoveries,
    check_same_dense,
    measure_dense,
    measure_pruned,
)
from pgb_lightning.experiments.fine_tuned import FineTuned
from pgb_lightning.experiments.mean_std import format_mean_std
from pgb_lightning.experiments.records import Result, ResultFile
from pgb_lightning.experiments.recoveries import RECOVERIES
from pgb_lightning.experiments.task_setup import TaskSetup
from pgb_lightning.packaged import resolve_model

Times = dict[str, dict[str, list[float]]]


def run(
    task: str,
    out_dir: str,
    large: str,
    small: str = "minilm-l6",
    kept_parameters: tuple[float, ...] = (10.6e6, 25e6, 42e6),
    data_dir: str | None = None,
    seeds: tuple[int, ...] = (0,),
    preset: str = "default",
    recovery: str = "distill",
    max_train_samples: int | None = None,
    epochs: int = 3,
    refinetuning_epochs: int = 3,
    large_learning_rate: float = 3e-5,
    small_learning_rate: float = 5e-5,
    data_options: dict[str, Any] | None = None,
    precision: str = "32-true",
    teacher_cache: str | None = None,
    batch_sizes: tuple[int, ...] = (1, 8),
    length: int = 128,
    repeats: int = 7,
    min_time: float = 0.5,
    num_threads: int = 1,
) -> list[Result]:
    """Fine-tune both models, prune and re-finetune the large one at each size, and print scores, sizes and latencies.

    Args:
        task: A GLUE task, "squad" or "squad_v2".
        out_dir: Folder for the results and all checkpoints.
        large: The pretrained model to prune.
        small: The pretrained model to compare it with.
        kept_parameters: Numbers of weights of the large model's encoder matrices to keep.
        data_dir: Local folder of parquet files; the Hub if not given.
        seeds: Seeds to run.
        preset: The preset that prunes.
        recovery: The way to re-finetune, by its name in :data:`~pgb_lightning.experiments.recoveries.RECOVERIES`.
        max_train_samples: Number of training rows; all if not given.
        epochs: Epochs of fine-tuning both models.
        refinetuning_epochs: Epochs of re-finetuning the pruned models.
        large_learning_rate: Learning rate of fine-tuning the large model.
        small_learning_rate: Learning rate of fine-tuning the small model.
        data_options: Further settings of the data module, such as ``{"group_by_length": true}``.
        precision: The Trainer's precision in training, such as "bf16-mixed". Latency is that of single precision.
        teacher_cache: Folder for the answers of the large model, so that it runs only in the first epoch of the first
            size.
        batch_sizes: Sequences per batch at which latency is measured.
        length: Tokens per sequence at which latency is measured.
        repeats: Number of interleaved rounds.
        min_time: Minimum duration of one measurement, in seconds.
        num_threads: CPU threads.

    Returns:
        The results of all models and seeds.

    Raises:
        ValueError: If the task, the preset, the recovery or one of the options is unknown, a number is out of range, or
            ``out_dir`` contains models of other settings.
    """
    check_positive(
        epochs=epochs,
        refinetuning_epochs=refinetuning_epochs,
        large_learning_rate=large_learning_rate,
        small_learning_rate=small_learning_rate,
    )
    check_recoveries("recovery", [recovery])
    total = encoder_parameters(large)
    if wrong := [kept for kept in kept_parameters if not 0 < kept < total]:
        raise ValueError(
            f"kept_parameters={wrong[0]:g} is out of range. Use less than the {total:,} of large={large!r}."
        )
    ratios = [round(1 - kept / total, 4) for kept in kept_parameters]
    check_methods("preset", [preset], ratios)
    setup = TaskSetup.of(task)
    data_options = setup.check_data_options(data_options)
    common = {
        "task": task,
        "max_train_samples": max_train_samples,
        "data_options": data_options,
        "epochs": epochs,
        "precision": precision,
    }
    settings: dict[str, Result] = {
        "small": {**common, "model_name_or_path": small, "learning_rate": small_learning_rate},
        "large": {**common, "model_name_or_path": large, "learning_rate": large_learning_rate},
    }
    stored = ResultFile(str(Path(out_dir) / "results.jsonl"))
    for own in settings.values():
        same = [one for one in stored.all() if one["model_name_or_path"] == own["model_name_or_path"]]
        check_same_dense(out_dir, same, own)
    torch.set_num_threads(num_threads)
    ways = {recovery: RECOVERIES[recovery].settings(refinetuning_epochs)}
    results: list[Result] = []
    for seed in seeds:
        folder = Path(out_dir) / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        for role, own in settings.items():
            data = setup.make_data(
                model_name_or_path=own["model_name_or_path"],
                data_dir=data_dir,
                max_train_samples=max_train_samples,
                seed=seed,
                **data_options,
            )
            model = FineTuned(
                setup=setup,
                checkpoint=folder / f"{role}.ckpt",
                data=data,
                precision=precision,
                seed=seed,
                teacher_cache=teacher_cache,
            )
            dense = measure_dense(model, {**own, "seed": seed}, stored)
            results.append({**dense, "checkpoint": str(model.checkpoint)})
            for ratio in ratios if role == "large" else ():
                cell = {**own, "seed": seed, "method": preset, "ratio": ratio}
                [pruned] = measure_pruned(model, cell, ways, stored, folder)
                checkpoint = folder / f"{preset}-{ratio}-{recovery}.ckpt"
                results.append({**pruned, "checkpoint": str(checkpoint)})
    times = _measure_latency(setup, results, batch_sizes, length, repeats, min_time)
    write_atomically(Path(out_dir) / "latency.json", json.dumps({"threads": num_threads, "seconds": times}) + "\n")
    Console(width=160).print(_table(setup, results, times))
    return results


def encoder_parameters(model_name_or_path: str) -> int:
    """Return the weights of the matrices of a pretrained encoder, from its configuration.

    Args:
        model_name_or_path: A Hub name, a local folder, or ``"minilm-l6"``.
    """
    config = AutoConfig.from_pretrained(resolve_model(model_name_or_path))
    with torch.device("meta"):
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    return dense_cost(find_encoder(model)).parameters


def _name(result: Result) -> str:
    """Return the name of a model, the same for all seeds."""
    name = Path(result["model_name_or_path"]).name
    return name if result["method"] == "dense" else f"{name}, {result['parameters'] / 1e6:.1f} M kept"


def _measure_latency(
    setup: TaskSetup, results: Sequence[Result], batch_sizes: Sequence[int], length: int, repeats: int, min_time: float
) -> Times:
    """Measure the models of the first seed in interleaved rounds, in seconds per batch."""
    models: dict[str, PreTrainedModel] = {}
    for result in results:
        if result["seed"] == results[0]["seed"]:
            module = setup.module.load_from_checkpoint(result["checkpoint"], map_location="cpu")
            models[_name(result)] = module.eval().model
    vocabulary = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(0)
    times: Times = {}
    for size in batch_sizes:
        ids = torch.randint(5, vocabulary, (size, length), generator=generator)
        batch: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        times[f"{size} x {length}"] = forward_times(models, batch, repeats, min_time)
    return times


def _table(setup: TaskSetup, results: Sequence[Result], times: Times) -> Table:
    """Make a table of all models: scores are mean and standard deviation over seeds, latencies medians of rounds."""
    table = Table(title="Prune a large model, or fine-tune a small one?")
    metric, scale = setup.metrics[0], 1 if setup.percent else 100
    columns = ("score", "encoder weights, M", "file, MB", "GFLOPs", *(f"{batch}, ms" for batch in times), "seeds")
    for column in ("model", *columns):
        table.add_column(column, justify="left" if column == "model" else "right")
    first = results[0]["seed"]
    for result in (one for one in results if one["seed"] == first):
        cell = ("model_name_or_path", "method", "ratio")
        rows = [one for one in results if all(one[key] == result[key] for key in cell)]
        latencies = (f"{1e3 * statistics.median(measured[_name(result)]):.1f}" for measured in times.values())
        table.add_row(
            _name(result),
            format_mean_std([scale * row["after"][metric] for row in rows]),
            f"{result['parameters'] / 1e6:.1f}",
            f"{Path(result['checkpoint']).stat().st_size / 1e6:.1f}",
            f"{result['flops'] / 1e9:.2f}",
            *latencies,
            str(len(rows)),
        )
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.large_or_small")
