"""Fine-tune, prune, re-finetune, over seeds: the measurements behind ``docs/results.md``.

Example:
    ::

        python -m pgb_lightning.experiments.seeds sst2 runs/sst2 --data_dir DIR --max_train_samples 20000

    Five seeds of another task, as long as the paper trains::

        python -m pgb_lightning.experiments.seeds mrpc runs/mrpc --seeds [0,1,2,3,4] --epochs 3 --refinetuning_epochs 3

    Beside other people's methods, which are named in :data:`pgb_lightning.experiments.baselines.BASELINES`::

        python -m pgb_lightning.experiments.seeds cola runs/cola --presets [default,kwon,magnitude,top-layers]

    SQuAD, batched by length::

        python -m pgb_lightning.experiments.seeds squad runs/squad --data_options '{"group_by_length": true}'
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.cli.suggestions import check_options
from pgb_lightning.config import PRESETS, PruningConfig
from pgb_lightning.datamodules import GLUEDataModule, SQuADDataModule
from pgb_lightning.experiments.baselines import BASELINES, BaselineCallback
from pgb_lightning.experiments.spread import spread
from pgb_lightning.experiments.trainer import make_trainer
from pgb_lightning.glue_tasks import get_task
from pgb_lightning.modules import QuestionAnswering, TextClassification

SQUAD_VERSIONS = {"squad": "1.1", "squad_v2": "2.0"}

#: Peers that leave fewer layers, or narrower hidden states, than a teacher has.
UNTEACHABLE = ("top-layers", "alternate-layers", "torch-pruning")


@dataclass(frozen=True)
class Subject:
    """What a task is measured with.

    Args:
        datamodule: Class of its data.
        module: Class of its model.
        options: What both are told to know the task.
        max_length: Tokens of an input, as in the paper.
        metrics: What is logged of it, the paper's metric first.
        percent: Whether the metrics are logged in percent.
    """

    datamodule: type[GLUEDataModule] | type[SQuADDataModule]
    module: type[TextClassification] | type[QuestionAnswering]
    options: dict[str, Any]
    max_length: int
    metrics: tuple[str, ...]
    percent: bool

    @classmethod
    def of(cls, name: str) -> Subject:
        """Look a task up.

        Raises:
            ValueError: It is neither a GLUE task nor "squad" nor "squad_v2".
        """
        if name in SQUAD_VERSIONS:
            version_2 = ("val_HasAns_f1", "val_NoAns_f1", "val_best_f1") if name == "squad_v2" else ()
            options = {"version": SQUAD_VERSIONS[name]}
            return cls(
                SQuADDataModule, QuestionAnswering, options, 384, ("val_f1", "val_exact_match", *version_2), True
            )
        try:
            task = get_task(name)
        except ValueError as error:
            raise ValueError(f"{error} Or one of: {', '.join(SQUAD_VERSIONS)}.") from None
        sets = [split.removeprefix("validation_") for split in task.validation_splits]
        prefixes = ["val", *(f"val_{name}" for name in sets[1:])]
        metrics = tuple(f"{prefix}_{metric}" for prefix in prefixes for metric in task.metrics)
        return cls(GLUEDataModule, TextClassification, {"task": name}, 128, metrics, False)


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
    """Train a module, save its weights, and return its scores before (if it has callbacks) and after.

    Args:
        module: The module.
        datamodule: Its data.
        epochs: Epochs to train.
        checkpoint: Where the weights go.
        callbacks: Such as :class:`PGBCallback`; the first scores are then those of the pruned module.

    Returns:
        Validation metrics before and after training; before, none without callbacks.
    """
    before = ScoreBeforeTraining()
    trainer = make_trainer(
        epochs,
        callbacks=[*callbacks, before],
        num_sanity_val_steps=-1 if callbacks else 0,
        check_val_every_n_epoch=epochs,  # only the last one counts
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
    max_length: int | None = None,
    data_options: dict[str, Any] | None = None,
    distillation: bool = False,
    num_threads: int = 1,
) -> None:
    """Measure a task: dense, pruned, and re-finetuned, over seeds; ends in mean and spread of each metric.

    A seed draws the training rows, their order, the calibration rows and dropout. What is measured already is
    read from ``out_dir``, so that an interrupted run goes on, and runs of different seeds can share a folder.

    Args:
        task: A GLUE task, of which MNLI is scored on both of its validation sets; "squad" or "squad_v2".
        out_dir: Folder for checkpoints and one JSON file a result, all of one model and way of training.
        data_dir: Local parquet folder; the Hub if not given.
        model_name_or_path: The pretrained encoder.
        seeds: Seeds to run.
        ratios: Values of ``pruning_ratio``.
        presets: Of "default", "paper" and "balanced", and of the baselines' names.
        max_train_samples: Training rows to use; all if not given.
        epochs: For fine-tuning the dense model (the paper: 3).
        refinetuning_epochs: For the pruned one (the paper: 3).
        learning_rate: For fine-tuning the dense model.
        refinetuning_learning_rate: For the pruned one (the paper: 2e-5 or 3e-5).
        max_length: Tokens of an input, at most; if not given, 128 for GLUE and 384 for SQuAD.
        data_options: Further settings of the data module, such as ``{"group_by_length": true}``.
        distillation: Whether the dense model teaches the pruned one in re-finetuning.
        num_threads: CPU threads; one where several runs share a machine.

    Raises:
        ValueError: ``task`` is none, a number of epochs, a learning rate or a ratio is out of range, a preset or one of
            ``data_options`` is unknown, a preset cannot be distilled, or ``out_dir`` holds results of other settings.
    """
    for name, value in {"epochs": epochs, "refinetuning_epochs": refinetuning_epochs}.items():
        if value < 1:
            raise ValueError(f"{name}={value} is out of range: give 1 or more.")
    rates = {"learning_rate": learning_rate, "refinetuning_learning_rate": refinetuning_learning_rate}
    for name, rate in rates.items():
        if rate <= 0:
            raise ValueError(f"{name}={rate} is out of range: give one above 0.")
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # refuses what is none
    for preset in presets:
        if distillation and preset in UNTEACHABLE:
            raise ValueError(
                f"presets names {preset!r}, whose hidden states cannot be compared with those of distillation's "
                "teacher: leave it out, or set distillation=False."
            )
        if preset in BASELINES:
            BASELINES[preset].check()
        elif preset not in PRESETS:
            known = ", ".join(map(repr, (*PRESETS, *BASELINES)))
            raise ValueError(f"presets names {preset!r}, which is none of {known}.")
    subject = Subject.of(task)
    given = {"model_name_or_path": model_name_or_path, **subject.options}
    taken = [*given, "data_dir", "max_train_samples", "seed", *(["max_length"] if max_length else [])]
    check_options("data_options", data_options or {}, subject.datamodule, taken)
    data_options = {"max_length": max_length or subject.max_length, **(data_options or {})}
    settings = {
        **{"task": task, "model_name_or_path": model_name_or_path, "max_train_samples": max_train_samples},
        **{"epochs": epochs, "refinetuning_epochs": refinetuning_epochs, "data_options": data_options},
        **{"learning_rate": learning_rate, "refinetuning_learning_rate": refinetuning_learning_rate},
    }
    if distillation:  # results with and without are of different folders
        settings["distillation"] = True
    _claim(Path(out_dir), settings)
    torch.set_num_threads(num_threads)
    metric = subject.metrics[0]
    for seed in seeds:
        folder = Path(out_dir) / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        data = subject.datamodule(
            **given, data_dir=data_dir, max_train_samples=max_train_samples, seed=seed, **data_options
        )
        dense = folder / "dense.ckpt"
        if not (folder / "dense.json").is_file():
            L.seed_everything(seed)
            module = subject.module(**given, learning_rate=learning_rate)
            _, scores = train(module, data, epochs, dense)
            _store(folder / "dense.json", {"seed": seed, "dense": scores[metric], "scores": {"dense": scores}})
        for ratio in ratios:
            for preset in presets:
                name = f"{preset}-{ratio}"
                if (folder / f"{name}.json").is_file():
                    continue
                L.seed_everything(seed)
                module = subject.module(**given, learning_rate=refinetuning_learning_rate, fine_tuned_ckpt=str(dense))
                pruner = BaselineCallback(preset, ratio) if preset in BASELINES else PGBCallback(ratio, preset)
                callbacks = [Distillation(), pruner] if distillation else [pruner]
                before, after = train(module, data, refinetuning_epochs, folder / f"{name}.ckpt", callbacks)
                result = {
                    **{"seed": seed, "preset": preset, "ratio": ratio, "removed": _removed(pruner)},
                    **{"before": before[metric], "after": after[metric]},
                    "scores": {"before": before, "after": after},
                }
                _store(folder / f"{name}.json", result)
    results = [json.loads(path.read_text()) for path in sorted(Path(out_dir).glob("seed*/*.json"))]
    for result in results:  # those of before there were `scores` have the paper's metric alone
        for stage in result.keys() & {"dense", "before", "after"}:
            result.setdefault("scores", {}).setdefault(stage, {})[metric] = result[stage]
    for name in subject.metrics:
        Console(width=100).print(_table(results, name, 1 if subject.percent else 100))


def _removed(pruner: PGBCallback | BaselineCallback) -> float:
    if isinstance(pruner, BaselineCallback):
        return pruner.removed
    assert pruner.plan is not None
    return pruner.plan.pruning_ratio


def _claim(out_dir: Path, settings: dict[str, Any]) -> None:
    """Keep a folder to one way of training, whose results alone may be averaged."""
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "settings.json"
    before = json.loads(path.read_text()) if path.is_file() else settings
    changed = [
        f"{name}={settings.get(name)!r}, not {before.get(name)!r}"
        for name in dict.fromkeys((*settings, *before))
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ValueError(
            f"out_dir={str(out_dir)!r} holds results of other settings: {'; '.join(changed)}. Name another."
        )
    _store(path, settings)


def _table(results: list[dict[str, Any]], metric: str, scale: float) -> Table:
    """Tabulate results: mean and standard deviation over seeds, in points."""
    dense = _scores(results, "dense", metric, scale)
    title = f"{metric}, mean ± standard deviation over {len(dense)} seeds; dense {spread(dense)}"
    table = Table(title=title)
    for column in ("ratio", "preset", "removed", "pruned", "re-finetuned", "seeds"):
        table.add_column(column, justify="right")
    settings = sorted({(r["ratio"], r["preset"]) for r in results if "ratio" in r})
    for ratio, preset in settings:
        rows = [r for r in results if (r.get("ratio"), r.get("preset")) == (ratio, preset)]
        columns = [spread([100 * row["removed"] for row in rows])]
        after = _scores(rows, "after", metric, scale)
        columns += [spread(_scores(rows, "before", metric, scale)), spread(after)]
        table.add_row(str(ratio), preset, *columns, str(len(after)))
    return table


def _scores(results: list[dict[str, Any]], stage: str, metric: str, scale: float) -> list[float]:
    """Pick a metric out of the results that have it."""
    found = [result["scores"].get(stage, {}).get(metric) for result in results]
    return [scale * value for value in found if value is not None]


def _store(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.seeds")
