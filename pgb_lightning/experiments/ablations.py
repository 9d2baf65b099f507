r"""Scores of the presets, of what is left of them without their parts, and of baselines: all from one calibration.

Example:
    ::

        python -m pgb_lightning.experiments.ablations sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR

    Over dense models of several seeds, with mean and spread, before and after an epoch of re-finetuning::

        python -m pgb_lightning.experiments.ablations sst2 '[runs/sst2/seed0/dense.ckpt, runs/sst2/seed1/dense.ckpt]' \\
          --seed [0,1] --data_dir DIR --refinetuning_epochs 1

    Beside other people's methods, which are named in :data:`pgb_lightning.experiments.baselines.BASELINES`::

        python -m pgb_lightning.experiments.ablations sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR \\
          --methods [default,paper,kwon,magnitude,top-layers,torch-pruning]
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console

from pgb_lightning.cli.suggestions import check_options
from pgb_lightning.config import PruningConfig, ridge_or_default
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.experiments.baselines import BASELINES
from pgb_lightning.experiments.dense_reference import DenseReference, find_tokenizer
from pgb_lightning.experiments.methods import METHODS, Candidates, ImpossibleError, Pruned, prune
from pgb_lightning.experiments.records import Result, ResultLines
from pgb_lightning.experiments.results import tabulate
from pgb_lightning.modules import TextClassification
from pgb_lightning.search.candidates import list_candidates

#: Settings of the data module that the command has itself.
TAKEN = ("task", "model_name_or_path", "data_dir", "max_train_samples", "calibration_size", "seed")


class DenseModel:
    """A dense model that is calibrated, and its candidates listed, once it is first pruned.

    Args:
        load: Reads and calibrates it.
        epochs: Epochs of re-finetuning.
        learning_rate: For them.
    """

    def __init__(self, load: Callable[[], DenseReference], epochs: int, learning_rate: float) -> None:
        self._load = load
        self.epochs = epochs
        self.learning_rate = learning_rate
        self._candidates: dict[tuple[object, ...], Candidates] = {}

    @cached_property
    def reference(self) -> DenseReference:
        """The dense model with its calibration."""
        return self._load()

    def candidates(self, method: str) -> Candidates:
        """List the shapes that a method searches; none if it does not."""
        config = METHODS[method].config(0.5) if method in METHODS else None
        if config is None or config.search != "shapes":
            return []
        key = config.permutation, ridge_or_default(config.ridge), config.max_groups, config.num_permutations
        if key not in self._candidates:
            self._candidates[key] = list_candidates(self.reference.encoder, self.reference.statistics, config)
        return self._candidates[key]

    def measure(self, method: str, ratio: float) -> Result:
        """Prune, measure, and re-finetune and measure again if wanted; the dense model, too, trains as long."""
        if method == "dense":
            pruned = Pruned(copy.deepcopy(self.reference.module), 0.0)
        else:
            pruned = prune(self.reference, method, ratio, self.candidates(method))
        result = {"kind": pruned.kind, "removed": pruned.removed, **self._score(pruned.module)}
        if pruned.shapes:
            result["shapes"] = pruned.shapes
        if self.epochs:
            self.reference.refinetune(pruned.module, self.epochs, self.learning_rate)
            result["refinetuned"] = self._score(pruned.module)
        return result

    def _score(self, module: TextClassification) -> Result:
        return asdict(self.reference.measure(module))


def run(
    task: str,
    ckpt_path: tuple[str, ...] | str,
    data_dir: str | None = None,
    model_name_or_path: str | None = None,
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7, 0.88),
    methods: tuple[str, ...] = tuple(METHODS),
    max_train_samples: int | None = None,
    calibration_size: int | None = None,
    seed: tuple[int, ...] | int = 0,
    refinetuning_epochs: int = 0,
    refinetuning_learning_rate: float = 3e-5,
    data_options: dict[str, Any] | None = None,
    num_threads: int = 1,
    out: str | None = None,
) -> list[Result]:
    """Calibrate each dense model once, then prune by every method at every ratio and measure on the validation set.

    What stands in ``out`` already is not measured again, so that an interrupted run goes on, and runs of other seeds,
    ratios or methods can share a file. A result is that of its task, checkpoint (the file's content, wherever it lies),
    data, tokenizer, seed and way of training.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense `TextClassification`, such as the experiment leaves; or a list of
            them, such as those of several seeds.
        data_dir: Local parquet folder; the Hub if not given.
        model_name_or_path: Where the tokenizer comes from; from where the model came if not given.
        ratios: Values of ``pruning_ratio``.
        methods: Which to run, by name, baselines among them; without the baselines if not given.
        max_train_samples: Training rows that the calibration rows are drawn from, and that are trained on; all if not
            given.
        calibration_size: Calibration rows; 2,048 if not given.
        seed: Draws rows, and the order of re-finetuning; one for all checkpoints, or a list of one for each.
        refinetuning_epochs: Epochs of training after pruning, then measured again; none if 0. The dense model trains as
            long.
        refinetuning_learning_rate: For them.
        data_options: Further settings of the data module, such as ``{"group_by_length": true}``.
        num_threads: CPU threads.
        out: A file for the results and the shapes that were chosen: JSON, one result a line.

    Returns:
        The results: for each checkpoint that of the dense model, and one a ratio and method. A method that a model
        cannot have, such as groups that do not divide its matrices, is left out with a warning.

    Raises:
        ValueError: A checkpoint is not there or of another task, there are not as many seeds, a method is unknown or
            needs a package that is not installed, a ratio, ``refinetuning_epochs`` or its learning rate is out of
            range, one of ``data_options`` is unknown, or ``out`` holds something else.
    """
    known = (*METHODS, *BASELINES)
    if unknown := [name for name in methods if name not in known]:
        raise ValueError(f"methods names {unknown[0]!r}, which is none of {', '.join(map(repr, known))}.")
    for name in methods:
        if name in BASELINES:
            BASELINES[name].check()
    paths = [ckpt_path] if isinstance(ckpt_path, str) else list(ckpt_path)
    if not paths or not all(Path(path).is_file() for path in paths):
        raise ValueError(f"ckpt_path={paths} must be a checkpoint's file, or a list of some.")
    seeds = [seed] * len(paths) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(paths):
        raise ValueError(f"seed={seeds} must be one number, or as many as there are checkpoints: {len(paths)}.")
    if refinetuning_epochs < 0:
        raise ValueError(f"refinetuning_epochs={refinetuning_epochs} is out of range: give 0 or more.")
    if refinetuning_learning_rate <= 0:
        raise ValueError(f"refinetuning_learning_rate={refinetuning_learning_rate} is out of range: give one above 0.")
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # refuses what is none
    check_options("data_options", data_options or {}, GLUEDataModule, taken=TAKEN)
    kept = ResultLines(out)
    torch.set_num_threads(num_threads)
    settings: Result = {"task": task, "data_dir": data_dir}
    settings |= {"max_train_samples": max_train_samples, "calibration_size": calibration_size}
    settings |= {"data_options": data_options, "refinetuning_epochs": refinetuning_epochs}
    if refinetuning_epochs:
        settings["refinetuning_learning_rate"] = refinetuning_learning_rate
    cells = dict.fromkeys([("dense", 0.0), *((name, ratio) for ratio in ratios for name in methods)])
    results: list[Result] = []
    for path, own_seed in dict.fromkeys(zip(paths, seeds, strict=True)):
        tokenizer = model_name_or_path or find_tokenizer(path)
        source = (task, path, data_dir, tokenizer, max_train_samples, calibration_size, own_seed)
        dense = DenseModel(
            partial(DenseReference.load, *source, data_options), refinetuning_epochs, refinetuning_learning_rate
        )
        weights = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        for method, ratio in cells:
            cell = {**settings, "model_name_or_path": tokenizer, "weights": weights, "seed": own_seed}
            cell |= {"method": method, "ratio": ratio}
            result = kept.find(cell)
            if result is None:
                try:
                    result = {**cell, "checkpoint": path, **dense.measure(method, ratio)}
                except ImpossibleError as error:
                    warnings.warn(f"{method!r} is left out: {error}", stacklevel=2)
                    continue
                kept.add(result)
            results.append(result)
    Console(width=200).print(tabulate(results))
    return results


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.ablations")
