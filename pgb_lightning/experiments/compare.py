r"""Compare one-shot pruning with methods that train masks: score, size, time, memory and latency of each.

Example:
    Each method at its published number of epochs, scaled down alike, over two seeds::

        python -m pgb_lightning.experiments.compare sst2 '[runs/sst2/seed0/dense.ckpt, runs/sst2/seed1/dense.ckpt]' \
          --seed [0,1] --data_dir DIR --methods '[default, cofi, "block movement"]' --ratios [0.5,0.88] --scale 0.1 \
          --out runs/compare/sst2.jsonl

    All methods at as many steps of the optimizer as three epochs have::

        python -m pgb_lightning.experiments.compare sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR \
          --methods '[default, cofi, "block movement"]' --total_epochs 3 --out runs/compare/sst2.jsonl \
          --figure runs/compare/sst2.svg

Each run is one line of ``--out``: a run that is repeated or continued measures only what is missing. Methods that learn
from the dense model have ``distilled`` in their names, those of one shot the recovery ``distill``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.config import PRESETS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines import BASELINES, make_permanent
from pgb_lightning.experiments.baselines.trained.registry import TRAINED
from pgb_lightning.experiments.cells import check_methods, check_positive, check_recoveries
from pgb_lightning.experiments.checkpoint_files import pair_with_seeds
from pgb_lightning.experiments.compare_figure import draw, label
from pgb_lightning.experiments.fine_tuned import FineTuned, PrunedModel, dense_models
from pgb_lightning.experiments.markdown import use_markdown
from pgb_lightning.experiments.mask_trained import final_settings, train_masks
from pgb_lightning.experiments.mean_std import format_mean_std
from pgb_lightning.experiments.metering import Clock
from pgb_lightning.experiments.records import Result, ResultFile
from pgb_lightning.experiments.recoveries import RECOVERIES
from pgb_lightning.experiments.task_setup import TaskSetup
from pgb_lightning.experiments.training import make_trainer
from pgb_lightning.latency import latency_ratio
from pgb_lightning.plotting import check_suffix, require_matplotlib, save

#: Epochs of re-finetuning after one-shot pruning, as in the paper.
ONE_SHOT_EPOCHS = 3


def run(
    task: str,
    ckpt_path: tuple[str, ...] | str,
    data_dir: str | None = None,
    methods: tuple[str, ...] = ("default", "paper", *TRAINED),
    ratios: tuple[float, ...] = (0.5, 0.88),
    recoveries: tuple[str, ...] = ("finetune",),
    scale: float = 1.0,
    total_epochs: float | None = None,
    seed: tuple[int, ...] | int = 0,
    max_train_samples: int | None = None,
    data_options: dict[str, Any] | None = None,
    precision: str = "32-true",
    latency_batch_size: int = 32,
    latency_length: int = 128,
    num_threads: int = 1,
    clock: Clock = "wall",
    markdown: bool = False,
    out: str | None = None,
    figure: str | None = None,
) -> list[Result]:
    """Prune dense models by each method, train the pruned models, and print the cost and the result of each method.

    Args:
        task: A GLUE task, "squad" or "squad_v2".
        ckpt_path: Lightning checkpoint of a dense module, such as :mod:`pgb_lightning.experiments.seeds` writes, or a
            list of checkpoints, such as those of several seeds.
        data_dir: Local folder of parquet files; the Hub if not given.
        methods: Names of presets, of baselines that prune in one shot, and of methods that train masks
            (:data:`~pgb_lightning.experiments.baselines.trained.registry.TRAINED`).
        ratios: Fractions of the encoder's weights to remove.
        recoveries: Ways to re-finetune after one-shot pruning.
        scale: Factor of each method's own number of epochs: the published one, and the paper's 3 for one-shot pruning.
        total_epochs: Total epochs of each method, in place of its own number. They are divided in the same proportion.
        seed: Seed of rows, their order and dropout: one for all checkpoints, or one per checkpoint.
        max_train_samples: Number of training rows; all if not given.
        data_options: Further settings of the data module, such as ``{"group_by_length": true}``.
        precision: The Trainer's precision in training, such as "bf16-mixed".
        latency_batch_size: Sequences in a batch when latency is measured.
        latency_length: Tokens per sequence when latency is measured.
        num_threads: CPU threads.
        clock: The clock of the hours: "process" is the time that all threads compute, which other programs affect less.
        markdown: Whether to print the table as Markdown.
        out: JSON-lines file for the results. Existing ones are reused.
        figure: File for a figure of scores against hours, such as an SVG file.

    Returns:
        The results: one per checkpoint, ratio, method and recovery.

    Raises:
        ValueError: If a checkpoint does not exist, the number of seeds does not match, the task, a method, a recovery
            or one of ``data_options`` is unknown, a number is out of range, or ``figure`` is not an SVG, PNG or PDF
            file.
        ImportError: If a figure is requested and matplotlib is not installed.
    """
    for method in methods:
        if method not in TRAINED and method not in PRESETS and method not in BASELINES:
            known = ", ".join(map(repr, (*PRESETS, *BASELINES, *TRAINED)))
            raise ValueError(f"methods contains {method!r}. Choose from {known}.")
    check_methods("methods", [method for method in methods if method not in TRAINED], ratios)
    check_recoveries("recoveries", recoveries)
    check_positive(scale=scale, total_epochs=total_epochs, latency_batch_size=latency_batch_size)
    if figure is not None:
        check_suffix(figure, "figure")
        require_matplotlib()
    checkpoints = pair_with_seeds(ckpt_path, seed)
    setup = TaskSetup.of(task)
    data_options = setup.check_data_options(data_options)
    stored = ResultFile(out)
    torch.set_num_threads(num_threads)
    results: list[Result] = []
    models = dense_models(setup, checkpoints, data_dir, max_train_samples, data_options, precision)
    for model, settings in models:
        for ratio in ratios:
            for method in methods:
                cell: Result = {
                    "task": task,
                    **settings,
                    "latency_shape": [latency_batch_size, latency_length],
                    "clock": clock,
                    "method": method,
                    "ratio": ratio,
                    "epochs": share_epochs(method, scale, total_epochs),
                }
                results += measure(model, cell, recoveries, stored)
    Console(width=200).print(tabulate(results, markdown))
    if figure:
        save(draw(results), Path(figure))
    return results


def share_epochs(method: str, scale: float, total: float | None) -> list[float]:
    """Return the epochs of pruning and of training the pruned model.

    Example:
        >>> share_epochs("default", 0.5, None), share_epochs("cofi", 0.1, None), share_epochs("cofi", 1.0, 3)
        ([0.0, 1.5], [2.0, 2.0], [1.5, 1.5])
    """
    own = (TRAINED[method].epochs, TRAINED[method].final_epochs) if method in TRAINED else (0, ONE_SHOT_EPOCHS)
    factor = scale if total is None else total / sum(own)
    return [round(epochs * factor, 4) for epochs in own]


def measure(model: FineTuned, cell: Result, recoveries: Sequence[str], stored: ResultFile) -> list[Result]:
    """Return the results of one method, one per way to train the pruned model. Those that are not stored are measured.

    Args:
        model: The dense model.
        cell: The settings, with the method, its ratio and its epochs.
        recoveries: The ways for one-shot methods; the other methods have their own.
        stored: The results.
    """
    method, (epochs, final_epochs) = cell["method"], cell["epochs"]
    ways = {name: RECOVERIES[name].settings(final_epochs) for name in recoveries}
    if method in TRAINED:
        ways = {"own": final_settings(method, final_epochs)}
    pruned: PrunedModel | None = None
    results = []
    for name, settings in ways.items():
        known = {**cell, "recovery": name}
        found = stored.find(known)
        if found is None:
            if pruned is None:
                pruned = _prune(model, cell, epochs)
            found = {**known, **_finish(model, pruned, settings, cell["clock"])}
            stored.add(found)
        results.append(found)
    return results


def _prune(model: FineTuned, cell: Result, epochs: float) -> PrunedModel:
    method, ratio = cell["method"], cell["ratio"]
    pruned = train_masks(model, method, ratio, epochs) if method in TRAINED else model.prune(method, ratio)
    latency = _latency_ratio(model, pruned, cell["latency_shape"])
    return replace(pruned, measured={**pruned.measured, "latency_ratio": latency})


def _latency_ratio(model: FineTuned, pruned: PrunedModel, shape: Sequence[int]) -> float:
    """Return the latency of a pruned encoder's layers as a fraction of the dense one's, at (batch size, length)."""
    device = make_trainer(1).strategy.root_device
    compared = [copy.deepcopy(module).to(device) for module in (model.module, pruned.module)]
    for module in compared:
        make_permanent(module)  # a mask that is applied in each call would cost time
    dense, left = map(find_encoder, compared)
    batch_size, length = shape
    return latency_ratio(dense, left, batch_size, length)


def _finish(model: FineTuned, pruned: PrunedModel, settings: Result, clock: Clock) -> Result:
    """Train a pruned model further, if the method does so, and return all measurements."""
    setup = model.setup
    unused = {"seconds": 0.0, "processor_seconds": 0.0, "peak_memory_bytes": None}
    no_training = {**pruned.measured, "after": pruned.measured["before"], "refinetuning": unused}
    result = model.recover(pruned, settings) if settings["epochs"] else no_training
    usage = [result["pruning"], result["refinetuning"]]
    peaks = [used["peak_memory_bytes"] for used in usage if used["peak_memory_bytes"] is not None]
    scale = 1 if setup.percent else 100
    seconds = "seconds" if clock == "wall" else "processor_seconds"
    return {
        **result,
        "metric": setup.metrics[0],
        "score": scale * result["after"][setup.metrics[0]],
        "dense_score": scale * model.validated.scores[setup.metrics[0]],
        "hours": [used[seconds] / 3600 for used in usage],
        "peak_memory_bytes": max(peaks, default=None),
    }


def tabulate(results: Sequence[Result], markdown: bool = False) -> Table:
    """Make a table of all methods: mean and standard deviation over dense models.

    Args:
        results: The results, of one task.
        markdown: Whether the table is Markdown, which has no title.
    """
    dense = list({one["weights"]: one["dense_score"] for one in results}.values())
    title = f"{results[0]['task']}: {results[0]['metric']}; dense {format_mean_std(dense)}"
    table = Table(title=title)
    if markdown:
        use_markdown(table)
    numbers = ("removed", "GFLOPs", "epochs", "hours", "peak memory, GB", "latency ratio", "score", "seeds")
    for column in ("ratio", "method", *numbers):
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    for key in dict.fromkeys(map(_row, results)):
        rows = [one for one in results if _row(one) == key]
        peaks = [one["peak_memory_bytes"] / 1e9 for one in rows if one["peak_memory_bytes"] is not None]
        table.add_row(
            str(rows[0]["ratio"]),
            label(rows[0]),
            format_mean_std([100 * one["removed"] for one in rows]),
            format_mean_std([one["flops"] / 1e9 for one in rows], digits=2),
            " + ".join(f"{epochs:g}" for epochs in rows[0]["epochs"]),
            " + ".join(format_mean_std([one["hours"][stage] for one in rows], digits=2) for stage in (0, 1)),
            format_mean_std(peaks),
            format_mean_std([one["latency_ratio"] for one in rows], digits=2),
            format_mean_std([one["score"] for one in rows]),
            str(len(rows)),
        )
    return table


def _row(result: Result) -> tuple[object, ...]:
    return result["ratio"], label(result), *result["epochs"]


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.compare")
