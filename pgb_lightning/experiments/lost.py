"""Score drops due to pruning: results of :mod:`pgb_lightning.experiments.seeds`, compared with the dense models."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pgb_lightning.experiments.cells import DENSE
from pgb_lightning.experiments.mean_std import standard_deviation
from pgb_lightning.experiments.records import Result, check_same_settings, read_results
from pgb_lightning.experiments.task_setup import TaskSetup

NEEDED = ("task", "seed", "method", "ratio", "removed", "flops", "after")
"""Keys that every result must have."""


@dataclass(frozen=True)
class Lost:
    """A pruned model, compared with its dense model by the paper's metric.

    Args:
        task: The task.
        seed: The seed.
        label: Method and recovery.
        ratio: The requested fraction.
        removed: The fraction that was removed.
        dense: The dense model's score, in percent.
        before: Points below it before re-finetuning.
        after: Points below it after re-finetuning.
        epochs: Epochs of re-finetuning.
        hours: Hours of pruning and of re-finetuning.
        peak_memory: Peak memory of both, in bytes, if it is known.
        flops: FLOPs of the pruned model.
    """

    task: str
    seed: int
    label: str
    ratio: float
    removed: float
    dense: float
    before: float
    after: float
    epochs: int
    hours: tuple[float, float]
    peak_memory: int | None
    flops: int

    @staticmethod
    def summary(rows: Sequence[Lost]) -> tuple[float, float, float]:
        """Return the mean fraction removed, and mean and standard deviation of the points lost after re-finetuning."""
        after = [row.after for row in rows]
        return statistics.fmean(row.removed for row in rows), statistics.fmean(after), standard_deviation(after)


def read_lost(paths: Sequence[str]) -> list[Lost]:
    """Read result files.

    Args:
        paths: Files of one or more tasks.

    Raises:
        ValueError: If a file contains anything else; there are no pruned models; a dense model is missing; or results
            of one task, or of one method and recovery, were measured with different settings.
    """
    results = [result for path in paths for result in read_results("files", path, NEEDED)]
    for task in dict.fromkeys(result["task"] for result in results):
        check_same_settings(task, [one for one in results if one["task"] == task], DENSE)
    dense = {(one["task"], one["seed"]): one for one in results if one["method"] == "dense"}
    pruned = [one for one in results if one["method"] != "dense"]
    if not pruned:
        raise ValueError(f"files={list(paths)} contain no pruned models yet. Pass files with at least one.")
    cells: dict[tuple[object, ...], Result] = {}
    for one in pruned:  # two processes may have measured the same
        cells.setdefault(tuple(one[name] for name in ("task", "seed", "method", "ratio", "recovery")), one)
    for task, label in dict.fromkeys((one["task"], _label(one)) for one in cells.values()):
        same = [one for one in pruned if (one["task"], _label(one)) == (task, label)]
        check_same_settings(f"{task} with {label}", same, ("refinetuning_settings", "pruning_options"))
    return [_compare(one, dense, paths) for one in cells.values()]


def _compare(result: Result, dense: dict[tuple[str, int], Result], paths: Sequence[str]) -> Lost:
    setup = TaskSetup.of(result["task"])
    metric, scale = setup.metrics[0], 1 if setup.percent else 100
    if (result["task"], result["seed"]) not in dense:
        raise ValueError(
            f"files={list(paths)} contain no dense model of {result['task']} with seed {result['seed']}. Pass the file "
            "that has it too."
        )
    reference = scale * dense[result["task"], result["seed"]]["after"][metric]
    usage = [result["pruning"], result["refinetuning"]]
    peaks = [used["peak_memory_bytes"] for used in usage if used["peak_memory_bytes"] is not None]
    return Lost(
        task=result["task"],
        seed=result["seed"],
        label=_label(result),
        ratio=result["ratio"],
        removed=result["removed"],
        dense=reference,
        before=reference - scale * result["before"][metric],
        after=reference - scale * result["after"][metric],
        epochs=result["refinetuning_settings"]["epochs"],
        hours=(usage[0]["seconds"] / 3600, usage[1]["seconds"] / 3600),
        peak_memory=max(peaks, default=None),
        flops=result["flops"],
    )


def _label(result: Result) -> str:
    return f"{result['method']}, {result['recovery']}"
