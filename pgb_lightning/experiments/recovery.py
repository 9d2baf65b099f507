r"""The parts of the recipe for re-finetuning: prune a dense model once, and re-finetune it in each way.

Example:
    ::

        python -m pgb_lightning.experiments.recovery sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR --out recovery.jsonl

    Some variants for three dense models; names with spaces need quotes::

        python -m pgb_lightning.experiments.recovery cola \
          '[runs/cola/seed0/dense.ckpt, runs/cola/seed1/dense.ckpt, runs/cola/seed2/dense.ckpt]' --seed [0,1,2] \
          --data_dir DIR --ratio 0.88 --epochs 3 --variants '[finetune, distill, labels too]' --precision bf16-mixed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.experiments.cells import check_methods, check_positive, check_recoveries, measure_pruned
from pgb_lightning.experiments.checkpoint_files import pair_with_seeds
from pgb_lightning.experiments.fine_tuned import dense_models
from pgb_lightning.experiments.markdown import use_markdown
from pgb_lightning.experiments.mean_std import format_mean_std
from pgb_lightning.experiments.records import Result, ResultFile
from pgb_lightning.experiments.recoveries import RECOVERIES
from pgb_lightning.experiments.task_setup import TaskSetup


def run(
    task: str,
    ckpt_path: tuple[str, ...] | str,
    data_dir: str | None = None,
    ratio: float = 0.88,
    method: str = "default",
    variants: tuple[str, ...] = tuple(RECOVERIES),
    epochs: int = 3,
    max_train_samples: int | None = None,
    seed: tuple[int, ...] | int = 0,
    data_options: dict[str, Any] | None = None,
    precision: str = "32-true",
    teacher_cache: str | None = None,
    num_threads: int = 1,
    markdown: bool = False,
    out: str | None = None,
) -> list[Result]:
    """Prune each dense model once, re-finetune it in each way, and print scores, divergence and time of each.

    Existing results in ``out`` are reused.

    Args:
        task: A GLUE task, "squad" or "squad_v2".
        ckpt_path: Lightning checkpoint of a dense module, such as :mod:`pgb_lightning.experiments.seeds` writes, or a
            list of checkpoints, such as those of several seeds.
        data_dir: Local folder of parquet files; the Hub if not given.
        ratio: Value of ``pruning_ratio``.
        method: A preset or the name of a baseline.
        variants: Names in :data:`~pgb_lightning.experiments.recoveries.RECOVERIES`; all if not given.
        epochs: Epochs of the variants that do not have their own.
        max_train_samples: Number of training rows; all if not given.
        seed: Seed for drawing rows, their order and dropout: one for all checkpoints, or one per checkpoint.
        data_options: Further settings of the data module, such as ``{"group_by_length": true}``.
        precision: The Trainer's precision in training, such as "bf16-mixed".
        teacher_cache: Folder for the dense models' answers, so that later epochs and re-finetunings need not compute
            them. Their times are then shorter, and marked as ``cached``.
        num_threads: CPU threads.
        markdown: Whether to print the table as Markdown.
        out: JSON-lines file for the results.

    Returns:
        The results: one per checkpoint and variant.

    Raises:
        ValueError: If a checkpoint does not exist, the number of seeds does not match, the task, the method, a variant
            or one of ``data_options`` is unknown, or a number is out of range.
    """
    check_methods("method", [method], [ratio])
    check_recoveries("variants", variants)
    check_positive(epochs=epochs)
    checkpoints = pair_with_seeds(ckpt_path, seed)
    setup = TaskSetup.of(task)
    data_options = setup.check_data_options(data_options)
    stored = ResultFile(out)
    torch.set_num_threads(num_threads)
    ways = {name: RECOVERIES[name].settings(epochs) for name in variants}
    results: list[Result] = []
    models = dense_models(
        setup, checkpoints, data_dir, max_train_samples, data_options, precision, teacher_cache=teacher_cache
    )
    for model, settings in models:
        cell: Result = {"task": task, **settings, "method": method, "ratio": ratio}
        results += measure_pruned(model, cell, ways, stored)
    Console(width=200).print(tabulate(results, setup.metrics[0], 1 if setup.percent else 100, markdown))
    return results


def tabulate(results: Sequence[Result], metric: str, scale: float, markdown: bool = False) -> Table:
    """Make a table of the variants: mean and standard deviation over dense models.

    Args:
        results: Results of one method at one ratio.
        metric: The metric.
        scale: Factor of the metric.
        markdown: Whether the table is Markdown, which has no title.
    """
    before = list({one["weights"]: scale * one["before"][metric] for one in results}.values())
    first = results[0]
    title = f"{first['method']} at {first['ratio']}: {metric} {format_mean_std(before)} before re-finetuning"
    table = Table(title=title)
    if markdown:
        use_markdown(table)
    columns = ("variant", "learning rate", "epochs", "task", "logits", "hidden", "score x 100", "divergence", "minutes")
    for column in (*columns, "seeds"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in dict.fromkeys(result["recovery"] for result in results):
        rows = [result for result in results if result["recovery"] == name]
        settings = rows[0]["refinetuning_settings"]
        losses = (rows[0]["refinetuning"][f"{part}_weight"] for part in ("task", "logits", "hidden"))
        table.add_row(
            name,
            f"{settings['learning_rate']:g}",
            str(settings["epochs"]),
            *(f"{weight:g}" for weight in losses),
            format_mean_std([scale * row["after"][metric] for row in rows]),
            format_mean_std([row["after"]["divergence"] for row in rows], digits=4),
            format_mean_std([row["refinetuning"]["seconds"] / 60 for row in rows]),
            str(len(rows)),
        )
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.recovery")
