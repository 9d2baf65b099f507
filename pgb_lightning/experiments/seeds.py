r"""Fine-tune, prune and re-finetune over several seeds: the measurements behind ``docs/results.md``.

Example:
    One epoch each, and the paper's method and the default without and with the dense model as teacher::

        python -m pgb_lightning.experiments.seeds sst2 runs/sst2 --data_dir DIR --recoveries [finetune,distill]

    The paper's budget, three epochs each on all rows, in batches of similar lengths and in mixed precision::

        python -m pgb_lightning.experiments.seeds mrpc runs/mrpc --data_dir DIR --epochs 3 --refinetuning_epochs 3 \
          --presets [paper,default,kwon,torch-pruning] --ratios [0.5,0.7,0.88] --recoveries [finetune,distill] \
          --precision bf16-mixed --data_options '{"group_by_length": true}'

    SQuAD, as in the paper with 16 rows in a batch::

        python -m pgb_lightning.experiments.seeds squad runs/squad --data_dir DIR --data_options '{"batch_size": 16}'

Results are lines of ``results.jsonl`` in the folder: one of each dense model, and one of each seed, method, ratio and
recovery. A run continues with what is missing. Several processes can share the folder, each with its own seeds, once
the dense models of shared seeds are there. A ``seed0/dense.ckpt`` that is there is used, not trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.config import PRESETS
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


def run(
    task: str,
    out_dir: str,
    data_dir: str | None = None,
    model_name_or_path: str = "minilm-l6",
    seeds: tuple[int, ...] = (0, 1, 2),
    ratios: tuple[float, ...] = (0.3, 0.5),
    presets: tuple[str, ...] = ("paper", "default"),
    recoveries: tuple[str, ...] = ("finetune",),
    max_train_samples: int | None = None,
    epochs: int = 1,
    refinetuning_epochs: int = 1,
    learning_rate: float = 5e-5,
    refinetuning_learning_rate: float | None = None,
    max_length: int | None = None,
    data_options: dict[str, Any] | None = None,
    pruning_options: dict[str, Any] | None = None,
    precision: str = "32-true",
    keep_checkpoints: bool = False,
    teacher_cache: str | None = None,
    num_threads: int = 1,
) -> list[Result]:
    """Measure the dense, pruned and re-finetuned models over seeds; print mean and standard deviation of each metric.

    A seed determines the training rows, their order, the calibration rows and dropout.

    Args:
        task: A GLUE task, "squad" or "squad_v2". MNLI is scored on both of its validation sets.
        out_dir: Folder for the results and the dense checkpoints, all of one model and one set of training settings.
        data_dir: Local folder of parquet files; the Hub if not given.
        model_name_or_path: The pretrained encoder.
        seeds: Seeds to run.
        ratios: Values of ``pruning_ratio``.
        presets: "default", "paper", "balanced", and names of baselines.
        recoveries: Ways to re-finetune, by their names in :data:`~pgb_lightning.experiments.recoveries.RECOVERIES`.
        max_train_samples: Number of training rows; all if not given.
        epochs: Epochs of fine-tuning the dense model (the paper: 3).
        refinetuning_epochs: Epochs of re-finetuning the pruned model (the paper: 3).
        learning_rate: Learning rate of fine-tuning.
        refinetuning_learning_rate: Learning rate of re-finetuning (the paper: 2e-5 or 3e-5); that of each recovery if
            not given.
        max_length: Maximum input length in tokens; 128 for GLUE and 384 for SQuAD if not given.
        data_options: Further settings of the data module, such as ``{"group_by_length": true}``.
        pruning_options: Settings that override those of the presets.
        precision: The Trainer's precision in training, such as "bf16-mixed".
        keep_checkpoints: Whether to keep the re-finetuned models, as ``seed0/default-0.5-finetune.ckpt``.
        teacher_cache: Folder for the dense models' answers, so that later epochs and re-finetunings need not compute
            them. Their times are then shorter, and marked as ``cached``.
        num_threads: CPU threads; use one if several runs share a machine.

    Returns:
        The results of the given seeds, presets, ratios and recoveries.

    Raises:
        ValueError: If the task, a preset, a recovery or one of the options is unknown; a number of epochs, a learning
            rate or a ratio is out of range; or ``out_dir`` contains dense models of other settings.
    """
    check_positive(
        epochs=epochs,
        refinetuning_epochs=refinetuning_epochs,
        learning_rate=learning_rate,
        refinetuning_learning_rate=refinetuning_learning_rate,
    )
    check_methods("presets", presets, ratios, pruning_options)
    check_recoveries("recoveries", recoveries)
    setup = TaskSetup.of(task)
    data_options = setup.check_data_options(data_options, max_length)
    settings: Result = {
        "task": task,
        "model_name_or_path": model_name_or_path,
        "max_train_samples": max_train_samples,
        "data_options": data_options,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "precision": precision,
    }
    stored = ResultFile(str(Path(out_dir) / "results.jsonl"))
    check_same_dense(out_dir, stored.all(), settings)
    torch.set_num_threads(num_threads)
    results: list[Result] = []
    for seed in seeds:
        folder = Path(out_dir) / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        data = setup.make_data(
            model_name_or_path=model_name_or_path,
            data_dir=data_dir,
            max_train_samples=max_train_samples,
            seed=seed,
            **data_options,
        )
        model = FineTuned(
            setup=setup,
            checkpoint=folder / "dense.ckpt",
            data=data,
            precision=precision,
            seed=seed,
            teacher_cache=teacher_cache,
        )
        results.append(measure_dense(model, {**settings, "seed": seed}, stored))
        for ratio in ratios:
            for method in presets:
                cell = {**settings, "seed": seed, "method": method, "ratio": ratio}
                if pruning_options and method in PRESETS:
                    cell["pruning_options"] = pruning_options
                ways = {
                    name: RECOVERIES[name].settings(refinetuning_epochs, refinetuning_learning_rate)
                    for name in recoveries
                }
                results += measure_pruned(model, cell, ways, stored, folder if keep_checkpoints else None)
    for name in setup.metrics:
        Console(width=110).print(_table(results, name, 1 if setup.percent else 100))
    return results


def _table(results: Sequence[Result], metric: str, scale: float) -> Table:
    """Make a table of mean and standard deviation over seeds, in percent."""
    dense = [scale * result["after"][metric] for result in results if result["method"] == "dense"]
    table = Table(title=f"{metric}, mean ± standard deviation over {len(dense)} seeds; dense {format_mean_std(dense)}")
    for column in ("ratio", "preset", "recovery", "removed", "pruned", "re-finetuned", "divergence", "seeds"):
        table.add_column(column, justify="right")
    pruned = [result for result in results if result["method"] != "dense"]
    for ratio, method, recovery in sorted({(one["ratio"], one["method"], one["recovery"]) for one in pruned}):
        rows = [one for one in pruned if (one["ratio"], one["method"], one["recovery"]) == (ratio, method, recovery)]
        table.add_row(
            str(ratio),
            method,
            recovery,
            format_mean_std([100 * row["removed"] for row in rows]),
            *(format_mean_std([scale * row[stage][metric] for row in rows]) for stage in ("before", "after")),
            format_mean_std([row["after"]["divergence"] for row in rows], digits=4),
            str(len(rows)),
        )
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.seeds")
