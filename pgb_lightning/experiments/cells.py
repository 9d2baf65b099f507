"""The cells of the tables: results of dense and pruned models, measured once and stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgb_lightning.config import PRESETS, PruningConfig
from pgb_lightning.experiments.baselines import BASELINES
from pgb_lightning.experiments.fine_tuned import FineTuned, size
from pgb_lightning.experiments.records import Result, ResultFile
from pgb_lightning.experiments.recoveries import RECOVERIES

#: Settings of dense models, which the results that are averaged share.
DENSE = ("task", "model_name_or_path", "max_train_samples", "data_options", "epochs", "learning_rate", "precision")


def check_methods(
    setting: str, methods: Sequence[str], ratios: Sequence[float], options: dict[str, Any] | None = None
) -> None:
    """Check that all presets and baselines are known and installed, and that ratios and options are valid.

    Args:
        setting: The name of the setting, for messages.
        methods: Presets and names of baselines.
        ratios: Pruning ratios.
        options: Settings that override those of the presets.

    Raises:
        ValueError: If one of them is not.
    """
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # raises if out of range
    for method in methods:
        if method in BASELINES:
            BASELINES[method].check()
        elif method in PRESETS:
            PruningConfig.from_preset(method, **(options or {}))
        else:
            known = ", ".join(map(repr, (*PRESETS, *BASELINES)))
            raise ValueError(f"{setting} contains {method!r}. Choose from {known}.")


def check_recoveries(setting: str, names: Sequence[str]) -> None:
    """Check that all recoveries are known.

    Args:
        setting: The name of the setting, for messages.
        names: Names of recoveries.

    Raises:
        ValueError: If one is not.
    """
    if unknown := [name for name in names if name not in RECOVERIES]:
        raise ValueError(f"{setting} contains {unknown[0]!r}. Choose from {', '.join(map(repr, RECOVERIES))}.")


def check_positive(**settings: float | None) -> None:
    """Check that all settings that are given are above 0.

    Args:
        settings: Values by the name of their setting.

    Raises:
        ValueError: If one is not.
    """
    for name, value in settings.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value} is out of range. Use a value above 0.")


def check_same_dense(out_dir: str, results: Sequence[Result], settings: Result) -> None:
    """Check that results were measured with the same dense models, since others must not be averaged.

    Args:
        out_dir: Their folder.
        results: The results.
        settings: The settings of the dense models.

    Raises:
        ValueError: If they were not.
    """
    for result in results:
        changed = [
            f"{name}={settings[name]!r}, not {result[name]!r}" for name in DENSE if settings[name] != result[name]
        ]
        if changed:
            raise ValueError(
                f"out_dir={out_dir!r} contains results of other settings: {'; '.join(changed)}. Use another folder."
            )


def measure_dense(model: FineTuned, cell: Result, stored: ResultFile) -> Result:
    """Return the result of a dense model. If it is not stored, measure it, and train it if there is no checkpoint.

    Args:
        model: The model.
        cell: Its settings and seed.
        stored: The results.
    """
    cell = {**cell, "method": "dense", "ratio": 0.0}
    found = stored.find(cell)
    if found is not None and model.checkpoint.is_file():
        return found
    training = {"model_name_or_path": cell["model_name_or_path"], "epochs": cell["epochs"]}
    if model.checkpoint.is_file():
        model.check_trained(**training, learning_rate=cell["learning_rate"])
        usage = None  # not known
    else:
        usage = model.train(**training, learning_rate=cell["learning_rate"])
    scores = model.score(model.module)
    result = {**cell, "removed": 0.0, **size(model.module), "after": scores, "finetuning": usage}
    if found is None:
        stored.add(result)
    return result


def measure_pruned(
    model: FineTuned, cell: Result, recoveries: dict[str, Result], stored: ResultFile, folder: Path | None = None
) -> list[Result]:
    """Return the results of one pruned model, one per recovery. Those that are not stored are measured.

    Args:
        model: The dense model.
        cell: Its settings and seed, with method and ratio.
        recoveries: Settings of the recoveries by name.
        stored: The results.
        folder: Folder for the checkpoints, if they are to be kept.
    """
    pruned, results = None, []
    for name, settings in recoveries.items():
        known = {**cell, "recovery": name, "refinetuning_settings": settings}
        checkpoint = None if folder is None else folder / f"{cell['method']}-{cell['ratio']}-{name}.ckpt"
        result = stored.find(known)
        if result is None or (checkpoint is not None and not checkpoint.is_file()):
            pruned = pruned or model.prune(cell["method"], cell["ratio"], cell.get("pruning_options"))
            measured = {**known, **model.recover(pruned, settings, checkpoint)}
            if result is None:
                stored.add(measured)
            result = measured
        results.append(result)
    return results
