"""Fine-tune, prune, re-finetune, over seeds: the measurements behind ``docs/results.md``.

Example:
    ::

        python -m pgb_lightning.experiment sst2 runs/sst2 --data_dir DIR --max_train_samples 20000

    Five seeds of another task, as long as the paper trains::

        python -m pgb_lightning.experiment mrpc runs/mrpc --seeds [0,1,2,3,4] --epochs 3 --refinetuning_epochs 3
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification
from pgb_lightning.tasks import GLUETask, get_task


class ScoreBeforeTraining(L.Callback):
    """Keep what the sanity check measures; over the whole validation set it is the score before training."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the metrics before they are reset."""
        self.scores = {name: float(value) for name, value in trainer.callback_metrics.items()}


def train(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    epochs: int,
    checkpoint: Path,
    callbacks: Sequence[L.Callback] = (),
) -> tuple[dict[str, float], dict[str, float]]:
    """Train a module, save its weights, and return its scores before and after.

    Args:
        module: The module.
        datamodule: Its data.
        epochs: Epochs to train.
        checkpoint: Where the weights go.
        callbacks: Such as :class:`PGBCallback`; the first scores are then those of the pruned module.

    Returns:
        Validation metrics before and after training.
    """
    before = ScoreBeforeTraining()
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, before],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, datamodule=datamodule)
    trainer.save_checkpoint(checkpoint, weights_only=True)
    return before.scores, {name: float(value) for name, value in trainer.callback_metrics.items()}


def run(
    task: str,
    out_dir: str,
    data_dir: str | None = None,
    model_name_or_path: str = "minilm-l6",
    seeds: tuple[int, ...] = (0, 1, 2),
    ratios: tuple[float, ...] = (0.3, 0.5),
    presets: tuple[str, ...] = ("paper", "default"),
    max_train_samples: int | None = None,
    epochs: int = 1,
    refinetuning_epochs: int = 1,
    learning_rate: float = 5e-5,
    refinetuning_learning_rate: float = 3e-5,
    max_length: int = 128,
    num_threads: int = 1,
) -> None:
    """Measure a GLUE task: dense, pruned, and re-finetuned, over seeds; ends in mean and spread of each metric.

    A seed draws the training rows, their order, the calibration rows and dropout. What is measured already is
    read from ``out_dir``, so that an interrupted run goes on, and runs of different seeds can share a folder.

    Args:
        task: The GLUE task; MNLI is scored on both of its validation sets.
        out_dir: Folder for checkpoints and one JSON file a result, all of one model and way of training.
        data_dir: Local parquet folder; the Hub if not given.
        model_name_or_path: The pretrained encoder.
        seeds: Seeds to run.
        ratios: Values of ``pruning_ratio``.
        presets: Presets of :class:`PruningConfig`.
        max_train_samples: Training rows to use; all if not given.
        epochs: For fine-tuning the dense model (the paper: 3).
        refinetuning_epochs: For the pruned one (the paper: 3).
        learning_rate: For fine-tuning the dense model.
        refinetuning_learning_rate: For the pruned one (the paper: 2e-5 or 3e-5).
        max_length: Tokens of a text, at most.
        num_threads: CPU threads; one where several runs share a machine.

    Raises:
        ValueError: ``task`` is none, a number of epochs is below 1, or ``out_dir`` holds results of other settings.
    """
    for name, value in {"epochs": epochs, "refinetuning_epochs": refinetuning_epochs}.items():
        if value < 1:
            raise ValueError(f"{name}={value} is out of range: give 1 or more.")
    settings = {
        **{"task": task, "model_name_or_path": model_name_or_path, "max_train_samples": max_train_samples},
        **{"epochs": epochs, "refinetuning_epochs": refinetuning_epochs, "max_length": max_length},
        **{"learning_rate": learning_rate, "refinetuning_learning_rate": refinetuning_learning_rate},
    }
    metrics = _metrics(get_task(task))
    _claim(Path(out_dir), settings)
    torch.set_num_threads(num_threads)
    metric = metrics[0]
    for seed in seeds:
        folder = Path(out_dir) / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        data = GLUEDataModule(
            *(task, model_name_or_path, data_dir), max_length=max_length, max_train_samples=max_train_samples, seed=seed
        )
        dense = folder / "dense.ckpt"
        if not (folder / "dense.json").is_file():
            L.seed_everything(seed)
            module = TextClassification(model_name_or_path, task, learning_rate=learning_rate)
            _, scores = train(module, data, epochs, dense)
            _store(folder / "dense.json", {"seed": seed, "dense": scores[metric], "scores": {"dense": scores}})
        for ratio in ratios:
            for preset in presets:
                name = f"{preset}-{ratio}"
                if (folder / f"{name}.json").is_file():
                    continue
                L.seed_everything(seed)
                module = TextClassification(
                    *(model_name_or_path, task),
                    learning_rate=refinetuning_learning_rate,
                    fine_tuned_ckpt=str(dense),
                )
                pgb = PGBCallback(ratio, preset)
                before, after = train(module, data, refinetuning_epochs, folder / f"{name}.ckpt", [pgb])
                assert pgb.plan is not None
                result = {
                    **{"seed": seed, "preset": preset, "ratio": ratio, "removed": pgb.plan.pruning_ratio},
                    **{"before": before[metric], "after": after[metric]},
                    "scores": {"before": before, "after": after},
                }
                _store(folder / f"{name}.json", result)
    results = [json.loads(path.read_text()) for path in sorted(Path(out_dir).glob("seed*/*.json"))]
    for result in results:  # those of before there were `scores` have the paper's metric alone
        for stage in result.keys() & {"dense", "before", "after"}:
            result.setdefault("scores", {}).setdefault(stage, {})[metric] = result[stage]
    for name in metrics:
        Console(width=100).print(_table(results, name))


def _metrics(task: GLUETask) -> list[str]:
    """List what is logged of a task, the paper's metric first."""
    sets = [split.removeprefix("validation_") for split in task.validation_splits]
    prefixes = ["val", *(f"val_{name}" for name in sets[1:])]
    return [f"{prefix}_{metric}" for prefix in prefixes for metric in task.metrics]


def _claim(out_dir: Path, settings: dict[str, Any]) -> None:
    """Keep a folder to one way of training, whose results alone may be averaged."""
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "settings.json"
    before = json.loads(path.read_text()) if path.is_file() else settings
    changed = [f"{name}={value!r}, not {before[name]!r}" for name, value in settings.items() if before[name] != value]
    if changed:
        raise ValueError(
            f"out_dir={str(out_dir)!r} holds results of other settings: {'; '.join(changed)}. Name another."
        )
    _store(path, settings)


def _table(results: list[dict[str, Any]], metric: str) -> Table:
    """Tabulate results: mean and standard deviation over seeds, in points."""
    dense = _scores(results, "dense", metric)
    title = f"{metric}, mean ± standard deviation over {len(dense)} seeds; dense {_spread(dense)}"
    table = Table(title=title)
    for column in ("ratio", "preset", "removed", "pruned", "re-finetuned", "seeds"):
        table.add_column(column, justify="right")
    settings = sorted({(r["ratio"], r["preset"]) for r in results if "ratio" in r})
    for ratio, preset in settings:
        rows = [r for r in results if (r.get("ratio"), r.get("preset")) == (ratio, preset)]
        columns = [_spread([row["removed"] for row in rows])]
        after = _scores(rows, "after", metric)
        columns += [_spread(_scores(rows, "before", metric)), _spread(after)]
        table.add_row(str(ratio), preset, *columns, str(len(after)))
    return table


def _scores(results: list[dict[str, Any]], stage: str, metric: str) -> list[float]:
    """Pick a metric out of the results that have it."""
    found = [result["scores"].get(stage, {}).get(metric) for result in results]
    return [value for value in found if value is not None]


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def _store(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    auto_cli(run)
