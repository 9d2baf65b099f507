"""Fine-tune, prune and re-finetune over several seeds: the measurements behind ``docs/results.md``.

Example:
    ::

        python -m pgb_lightning.experiments.seeds sst2 runs/sst2 --data_dir DIR --max_train_samples 20000

    Five seeds of another task, trained as long as in the paper::

        python -m pgb_lightning.experiments.seeds mrpc runs/mrpc --seeds [0,1,2,3,4] --epochs 3 --refinetuning_epochs 3

    Together with baselines, whose names are in :data:`pgb_lightning.experiments.baselines.BASELINES`::

        python -m pgb_lightning.experiments.seeds cola runs/cola --presets [default,kwon,magnitude,top-layers]

    SQuAD, with batches of similar lengths::

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
from pgb_lightning.experiments.mean_std import format_mean_std
from pgb_lightning.experiments.records import Result
from pgb_lightning.experiments.task_setup import TaskSetup
from pgb_lightning.experiments.training import train

#: Baselines whose models have fewer layers, or narrower hidden states, than the teacher, and cannot be distilled.
NOT_DISTILLABLE = ("top-layers", "alternate-layers", "torch-pruning")


@dataclass(frozen=True)
class Experiment:
    """Training settings of one task, and the two kinds of measurement.

    Args:
        setup: The task's classes and metrics.
        model_name_or_path: The pretrained encoder.
        epochs: Epochs of fine-tuning the dense model.
        refinetuning_epochs: Epochs of re-finetuning the pruned model.
        learning_rate: Learning rate of fine-tuning.
        refinetuning_learning_rate: Learning rate of re-finetuning.
        distillation: Whether the dense model is the teacher in re-finetuning.
    """

    setup: TaskSetup
    model_name_or_path: str
    epochs: int
    refinetuning_epochs: int
    learning_rate: float
    refinetuning_learning_rate: float
    distillation: bool

    def measure_dense(self, data: GLUEDataModule | SQuADDataModule, seed: int, checkpoint: Path) -> Result:
        """Fine-tune the dense model, save it, and return its scores."""
        L.seed_everything(seed)
        module = self.setup.module(
            model_name_or_path=self.model_name_or_path, learning_rate=self.learning_rate, **self.setup.options
        )
        _, scores = train(module, data, self.epochs, checkpoint)
        return {"seed": seed, "dense": scores[self.setup.metrics[0]], "scores": {"dense": scores}}

    def measure_pruned(
        self,
        data: GLUEDataModule | SQuADDataModule,
        seed: int,
        preset: str,
        ratio: float,
        dense_checkpoint: Path,
        checkpoint: Path,
    ) -> Result:
        """Prune and re-finetune the dense model, save it, and return its scores before and after re-finetuning."""
        L.seed_everything(seed)
        module = self.setup.module(
            model_name_or_path=self.model_name_or_path,
            learning_rate=self.refinetuning_learning_rate,
            fine_tuned_ckpt=str(dense_checkpoint),
            **self.setup.options,
        )
        pruner = BaselineCallback(preset, ratio) if preset in BASELINES else PGBCallback(ratio, preset)
        callbacks = [Distillation(), pruner] if self.distillation else [pruner]
        before, after = train(module, data, self.refinetuning_epochs, checkpoint, callbacks)
        metric = self.setup.metrics[0]
        return {
            "seed": seed,
            "preset": preset,
            "ratio": ratio,
            "removed": _removed_fraction(pruner),
            "before": before[metric],
            "after": after[metric],
            "scores": {"before": before, "after": after},
        }


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
    """Measure the dense, pruned and re-finetuned models over seeds; print mean and standard deviation of each metric.

    A seed determines the training rows, their order, the calibration rows and dropout. Existing results in ``out_dir``
    are reused, so an interrupted run can be continued, and runs of different seeds can share a folder.

    Args:
        task: A GLUE task, "squad" or "squad_v2". MNLI is scored on both of its validation sets.
        out_dir: Folder for checkpoints and one JSON file per result, all from one model and one set of training
            settings.
        data_dir: Local folder of parquet files; the Hub if not given.
        model_name_or_path: The pretrained encoder.
        seeds: Seeds to run.
        ratios: Values of ``pruning_ratio``.
        presets: "default", "paper", "balanced", and names of baselines.
        max_train_samples: Number of training rows; all if not given.
        epochs: Epochs of fine-tuning the dense model (the paper: 3).
        refinetuning_epochs: Epochs of re-finetuning the pruned model (the paper: 3).
        learning_rate: Learning rate of fine-tuning.
        refinetuning_learning_rate: Learning rate of re-finetuning (the paper: 2e-5 or 3e-5).
        max_length: Maximum input length in tokens; 128 for GLUE and 384 for SQuAD if not given.
        data_options: Further settings of the data module, such as ``{"group_by_length": true}``.
        distillation: Whether the dense model is the teacher in re-finetuning.
        num_threads: CPU threads; use one if several runs share a machine.

    Raises:
        ValueError: If the task, a preset or one of ``data_options`` is unknown; a number of epochs, a learning rate or
            a ratio is out of range; a preset cannot be distilled; or ``out_dir`` contains results of other settings.
    """
    for name, value in {"epochs": epochs, "refinetuning_epochs": refinetuning_epochs}.items():
        if value < 1:
            raise ValueError(f"{name}={value} is out of range. Use 1 or more.")
    rates = {"learning_rate": learning_rate, "refinetuning_learning_rate": refinetuning_learning_rate}
    for name, rate in rates.items():
        if rate <= 0:
            raise ValueError(f"{name}={rate} is out of range. Use a value above 0.")
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # raises if out of range
    _check_presets(presets, distillation)
    setup = TaskSetup.of(task)
    taken = ["model_name_or_path", *setup.options, "data_dir", "max_train_samples", "seed"]
    if max_length:
        taken.append("max_length")
    check_options("data_options", data_options or {}, setup.datamodule, taken)
    data_options = {"max_length": max_length or setup.max_length, **(data_options or {})}
    settings = {
        "task": task,
        "model_name_or_path": model_name_or_path,
        "max_train_samples": max_train_samples,
        "epochs": epochs,
        "refinetuning_epochs": refinetuning_epochs,
        "data_options": data_options,
        "learning_rate": learning_rate,
        "refinetuning_learning_rate": refinetuning_learning_rate,
    }
    if distillation:  # left out otherwise, so that folders from before this setting can be continued
        settings["distillation"] = True
    _claim_folder(Path(out_dir), settings)
    torch.set_num_threads(num_threads)
    experiment = Experiment(
        setup=setup,
        model_name_or_path=model_name_or_path,
        epochs=epochs,
        refinetuning_epochs=refinetuning_epochs,
        learning_rate=learning_rate,
        refinetuning_learning_rate=refinetuning_learning_rate,
        distillation=distillation,
    )
    for seed in seeds:
        folder = Path(out_dir) / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        data = setup.datamodule(
            model_name_or_path=model_name_or_path,
            data_dir=data_dir,
            max_train_samples=max_train_samples,
            seed=seed,
            **setup.options,
            **data_options,
        )
        dense = folder / "dense.ckpt"
        if not (folder / "dense.json").is_file():
            _write(folder / "dense.json", experiment.measure_dense(data, seed, dense))
        for ratio in ratios:
            for preset in presets:
                stem = folder / f"{preset}-{ratio}"
                json_file, checkpoint = Path(f"{stem}.json"), Path(f"{stem}.ckpt")
                if not json_file.is_file():
                    _write(json_file, experiment.measure_pruned(data, seed, preset, ratio, dense, checkpoint))
    results = _read_results(Path(out_dir), setup.metrics[0])
    for name in setup.metrics:
        Console(width=100).print(_table(results, name, 1 if setup.percent else 100))


def _check_presets(presets: Sequence[str], distillation: bool) -> None:
    """Check that all presets and baselines are known, installed, and can be distilled if required."""
    for preset in presets:
        if distillation and preset in NOT_DISTILLABLE:
            raise ValueError(
                f"presets contains {preset!r}, whose hidden states do not match the teacher's. "
                "Remove it, or set distillation=False."
            )
        if preset in BASELINES:
            BASELINES[preset].check()
        elif preset not in PRESETS:
            known = ", ".join(map(repr, (*PRESETS, *BASELINES)))
            raise ValueError(f"presets contains {preset!r}. Choose from {known}.")


def _removed_fraction(pruner: PGBCallback | BaselineCallback) -> float:
    if isinstance(pruner, BaselineCallback):
        return pruner.removed
    assert pruner.plan is not None
    return pruner.plan.pruning_ratio


def _claim_folder(out_dir: Path, settings: dict[str, Any]) -> None:
    """Record the settings of a folder, or check that they are the recorded ones: other results must not be averaged."""
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "settings.json"
    recorded = json.loads(path.read_text()) if path.is_file() else settings
    changed = [
        f"{name}={settings.get(name)!r}, not {recorded.get(name)!r}"
        for name in dict.fromkeys((*settings, *recorded))
        if recorded.get(name) != settings.get(name)
    ]
    if changed:
        raise ValueError(
            f"out_dir={str(out_dir)!r} contains results of other settings: {'; '.join(changed)}. Use another folder."
        )
    _write(path, settings)


def _read_results(out_dir: Path, metric: str) -> list[Result]:
    """Read all results of a folder; old files, which have no ``scores``, contain the paper's metric only."""
    results: list[Result] = [json.loads(path.read_text()) for path in sorted(out_dir.glob("seed*/*.json"))]
    for result in results:
        for stage in result.keys() & {"dense", "before", "after"}:
            result.setdefault("scores", {}).setdefault(stage, {})[metric] = result[stage]
    return results


def _table(results: list[Result], metric: str, scale: float) -> Table:
    """Make a table of mean and standard deviation over seeds, in percent."""
    dense = _scores(results, "dense", metric, scale)
    table = Table(title=f"{metric}, mean ± standard deviation over {len(dense)} seeds; dense {format_mean_std(dense)}")
    for column in ("ratio", "preset", "removed", "pruned", "re-finetuned", "seeds"):
        table.add_column(column, justify="right")
    settings = sorted({(result["ratio"], result["preset"]) for result in results if "ratio" in result})
    for ratio, preset in settings:
        rows = [result for result in results if (result.get("ratio"), result.get("preset")) == (ratio, preset)]
        after = _scores(rows, "after", metric, scale)
        table.add_row(
            str(ratio),
            preset,
            format_mean_std([100 * row["removed"] for row in rows]),
            format_mean_std(_scores(rows, "before", metric, scale)),
            format_mean_std(after),
            str(len(after)),
        )
    return table


def _scores(results: list[Result], stage: str, metric: str, scale: float) -> list[float]:
    """Return a metric of the results that have it."""
    values = [result["scores"].get(stage, {}).get(metric) for result in results]
    return [scale * value for value in values if value is not None]


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.seeds")
