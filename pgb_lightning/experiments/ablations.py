r"""Scores of the presets, their ablations and the baselines, all from one calibration per dense model.

Example:
    ::

        python -m pgb_lightning.experiments.ablations sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR

    Mean and standard deviation over dense models of several seeds, before and after one epoch of re-finetuning::

        python -m pgb_lightning.experiments.ablations sst2 '[runs/sst2/seed0/dense.ckpt, runs/sst2/seed1/dense.ckpt]' \
          --seed [0,1] --data_dir DIR --refinetuning_epochs 1

    Together with baselines, whose names are in :data:`pgb_lightning.experiments.baselines.BASELINES`::

        python -m pgb_lightning.experiments.ablations sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR \
          --methods [default,paper,kwon,magnitude,top-layers,torch-pruning]
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console

from pgb_lightning.cli.suggestions import check_options
from pgb_lightning.config import PruningConfig, ridge_or_default
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.experiments.baselines import BASELINES
from pgb_lightning.experiments.checkpoint_files import find_tokenizer, hash_file, pair_with_seeds
from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.experiments.methods import METHODS, Candidates, NotApplicableError, Pruned, prune
from pgb_lightning.experiments.records import Result, ResultFile
from pgb_lightning.experiments.results import tabulate
from pgb_lightning.modules import TextClassification
from pgb_lightning.search.candidates import list_candidates

#: Settings of the data module that are arguments of the command.
DATA_ARGUMENTS = ("task", "model_name_or_path", "data_dir", "max_train_samples", "calibration_size", "seed")


class DenseModel:
    """A dense model that is loaded, calibrated and searched for candidates only when first needed.

    Args:
        load: Function that loads and calibrates the model.
        epochs: Epochs of re-finetuning.
        learning_rate: Learning rate of re-finetuning.
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
        """Return the candidates of a method's search over shapes; none if it has no such search."""
        config = METHODS[method].config(0.5) if method in METHODS else None
        if config is None or config.search != "shapes":
            return []
        key = config.permutation, ridge_or_default(config.ridge), config.max_groups, config.num_permutations
        if key not in self._candidates:
            self._candidates[key] = list_candidates(self.reference.encoder, self.reference.statistics, config)
        return self._candidates[key]

    def measure(self, method: str, ratio: float) -> Result:
        """Prune and evaluate, then re-finetune and evaluate again if requested. "dense" is trained equally long."""
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
        return asdict(self.reference.evaluate(module))


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
    """Calibrate each dense model once, prune it by every method at every ratio, and evaluate on the validation set.

    Existing results in ``out`` are reused, so an interrupted run can be continued, and runs of other seeds, ratios or
    methods can share a file. A result is identified by its task, checkpoint (the file's content, not its path), data,
    tokenizer, seed, method, ratio and training settings.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense ``TextClassification``, such as
            :mod:`pgb_lightning.experiments.seeds` writes, or a list of checkpoints, such as those of several seeds.
        data_dir: Local folder of parquet files; the Hub if not given.
        model_name_or_path: Name or path of the tokenizer; that of the checkpoint's model if not given.
        ratios: Values of ``pruning_ratio``.
        methods: Names of methods and baselines; all methods and no baselines if not given.
        max_train_samples: Number of training rows, from which the calibration rows are drawn; all if not given.
        calibration_size: Number of calibration rows; 2,048 if not given.
        seed: Seed for drawing rows and for the order of re-finetuning: one for all checkpoints, or one per checkpoint.
        refinetuning_epochs: Epochs of re-finetuning, followed by another evaluation; none if 0. The dense model is
            trained for as many epochs.
        refinetuning_learning_rate: Learning rate of re-finetuning.
        data_options: Further settings of the data module, such as ``{"group_by_length": true}``.
        num_threads: CPU threads.
        out: JSON-lines file for the results and the chosen shapes.

    Returns:
        The results: for each checkpoint, one of the dense model and one per ratio and method. A method that cannot be
        applied to a model, such as groups that do not divide its matrices, is skipped with a warning.

    Raises:
        ValueError: If a checkpoint does not exist or is of another task; the number of seeds does not match; a method
            is unknown or needs a package that is not installed; a ratio, ``refinetuning_epochs`` or its learning rate
            is out of range; one of ``data_options`` is unknown; or ``out`` contains anything but results.
    """
    check_methods(methods)
    checkpoints = pair_with_seeds(ckpt_path, seed)
    if refinetuning_epochs < 0:
        raise ValueError(f"refinetuning_epochs={refinetuning_epochs} is out of range. Use 0 or more.")
    if refinetuning_learning_rate <= 0:
        raise ValueError(
            f"refinetuning_learning_rate={refinetuning_learning_rate} is out of range. Use a value above 0."
        )
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # raises if out of range
    check_options("data_options", data_options or {}, GLUEDataModule, taken=DATA_ARGUMENTS)
    stored = ResultFile(out)
    torch.set_num_threads(num_threads)
    settings: Result = {
        "task": task,
        "data_dir": data_dir,
        "max_train_samples": max_train_samples,
        "calibration_size": calibration_size,
        "data_options": data_options,
        "refinetuning_epochs": refinetuning_epochs,
    }
    if refinetuning_epochs:
        settings["refinetuning_learning_rate"] = refinetuning_learning_rate
    cells = dict.fromkeys([("dense", 0.0), *((name, ratio) for ratio in ratios for name in methods)])
    results: list[Result] = []
    for path, own_seed in dict.fromkeys(checkpoints):
        tokenizer = model_name_or_path or find_tokenizer(path)
        load = partial(
            DenseReference.load,
            task=task,
            ckpt_path=path,
            data_dir=data_dir,
            model_name_or_path=tokenizer,
            max_train_samples=max_train_samples,
            calibration_size=calibration_size,
            seed=own_seed,
            data_options=data_options,
        )
        dense = DenseModel(load, refinetuning_epochs, refinetuning_learning_rate)
        weights = hash_file(path)
        for method, ratio in cells:
            cell = {
                **settings,
                "model_name_or_path": tokenizer,
                "weights": weights,
                "seed": own_seed,
                "method": method,
                "ratio": ratio,
            }
            result = stored.find(cell)
            if result is None:
                try:
                    result = {**cell, "checkpoint": path, **dense.measure(method, ratio)}
                except NotApplicableError as error:
                    warnings.warn(f"Method {method!r} is skipped: {error}", stacklevel=2)
                    continue
                stored.add(result)
            results.append(result)
    Console(width=200).print(tabulate(results))
    return results


def check_methods(methods: Sequence[str]) -> None:
    """Check that all methods and baselines are known and installed.

    Raises:
        ValueError: If one is not.
    """
    known = (*METHODS, *BASELINES)
    if unknown := [name for name in methods if name not in known]:
        raise ValueError(f"methods contains {unknown[0]!r}. Choose from {', '.join(map(repr, known))}.")
    for name in methods:
        if name in BASELINES:
            BASELINES[name].check()


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.ablations")
