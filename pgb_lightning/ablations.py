"""One-shot scores of the presets, and of what is left of them without their parts: one calibration, no re-finetuning.

Example:
    ::

        python -m pgb_lightning.ablations sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.bench import Bench
from pgb_lightning.budget import Demand, allocate
from pgb_lightning.candidates import Candidate, list_candidates
from pgb_lightning.config import PruningConfig
from pgb_lightning.importance import second_order_importance
from pgb_lightning.plan import Index, PruningPlan
from pgb_lightning.pruning import make_plan, plan_matrix
from pgb_lightning.tasks import get_task

Candidates = list[list[Candidate]]


def as_set(bench: Bench, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Plan as the settings say."""
    return make_plan(bench.encoder, bench.statistics, config, candidates)


def by_magnitude(bench: Bench, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Let every weight's importance be its square."""
    ones = {key: torch.ones_like(fisher) for key, fisher in bench.statistics.fisher.items()}
    return make_plan(bench.encoder, replace(bench.statistics, fisher=ones), config, candidates)


def unpermuted(bench: Bench, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Cut each matrix into as many blocks, but along its diagonal as it comes."""
    plan = make_plan(bench.encoder, bench.statistics, config, candidates)
    matrices = (
        replace(matrix, input_index=_in_order(matrix.input_index), output_index=_in_order(matrix.output_index))
        for matrix in plan.matrices
    )
    return replace(plan, matrices=tuple(matrices))


def fixed_groups(bench: Bench, config: PruningConfig, candidates: Candidates, number: int = 6) -> PruningPlan:
    """Allow no group number but one, beside whole and pruned whole."""
    plan = make_plan(bench.encoder, bench.statistics, config, candidates)
    importances = {
        key: second_order_importance(linear.weight.T, bench.statistics.fisher[key])
        for key, linear in bench.encoder.linears()
    }
    demands = {}
    for key, importance in importances.items():
        demand = Demand.of(importance, config.max_groups)
        demands[key] = replace(demand, thresholds={g: t for g, t in demand.thresholds.items() if g in (0, number)})
    numbers, _ = allocate(demands, config)
    matrices = (plan_matrix(key, importances[key], numbers[key], config) for key in importances)
    return replace(plan, matrices=tuple(matrices))


@dataclass(frozen=True)
class Method:
    """A way to prune.

    Args:
        preset: The preset it starts from.
        settings: What is set otherwise.
        plan: Makes the plan.
    """

    preset: str
    settings: dict[str, Any] = field(default_factory=dict)
    plan: Callable[[Bench, PruningConfig, Candidates], PruningPlan] = as_set


METHODS: dict[str, Method] = {
    "default": Method("default"),
    "balanced": Method("balanced"),
    "paper": Method("paper"),
    "default, no compensation": Method("default", {"compensation": False}),
    "paper, no compensation": Method("paper", {"compensation": False}),
    "paper, no permutation": Method("paper", plan=unpermuted),
    "paper, magnitude": Method("paper", plan=by_magnitude),
    "paper, fixed G = 6": Method("paper", plan=partial(fixed_groups, number=6)),
}


def run(
    task: str,
    ckpt_path: str,
    data_dir: str | None = None,
    model_name_or_path: str = "minilm-l6",
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7, 0.88),
    methods: tuple[str, ...] = tuple(METHODS),
    max_train_samples: int | None = None,
    calibration_size: int | None = None,
    seed: int = 0,
    num_threads: int = 1,
    out: str | None = None,
) -> list[dict[str, Any]]:
    """Calibrate once, then prune by every method at every ratio and measure on the validation set.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense `TextClassification`, such as the experiment leaves.
        data_dir: Local parquet folder; the Hub if not given.
        model_name_or_path: Where the tokenizer comes from.
        ratios: Values of ``pruning_ratio``.
        methods: Which to run, by name.
        max_train_samples: Training rows that the calibration rows are drawn from; all if not given.
        calibration_size: Calibration rows; 2,048 if not given.
        seed: Draws them.
        num_threads: CPU threads.
        out: A JSON file for the results and the shapes that were chosen.

    Returns:
        The results.

    Raises:
        ValueError: A method is unknown.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"methods names {unknown[0]!r}, which is none of {', '.join(map(repr, METHODS))}.")
    torch.set_num_threads(num_threads)
    bench = Bench.load(task, ckpt_path, data_dir, model_name_or_path, max_train_samples, calibration_size, seed)
    dense = bench.measure(bench.module)
    candidates = list_candidates(bench.encoder, bench.statistics, PruningConfig())
    results: list[dict[str, Any]] = []
    for ratio in ratios:
        for name in methods:
            method = METHODS[name]
            config = PruningConfig.from_preset(method.preset, pruning_ratio=ratio, **method.settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a missed target shows in the table
                plan = method.plan(bench, config, candidates)
            measured = bench.measure(bench.pruned(plan, config))
            shapes = plan.config.get("shapes")
            found = {"ratio": ratio, "method": name, "removed": plan.pruning_ratio, **asdict(measured)}
            results.append({**found, "shapes": shapes} if shapes else found)
            if out:
                Path(out).write_text(json.dumps({"task": task, "dense": asdict(dense), "results": results}, indent=1))
    Console(width=100).print(_table(task, dense.score, results))
    return results


def _in_order(index: Index) -> Index:
    if not index:
        return index
    size = len(index[0])
    return tuple(tuple(range(g * size, (g + 1) * size)) for g in range(len(index)))


def _table(task: str, dense: float, results: list[dict[str, Any]]) -> Table:
    metric = get_task(task).metrics[0]
    table = Table(title=f"{task}, one-shot, before re-finetuning; {metric} x 100 (dense {dense:.1f})")
    for column in ("ratio", "method", "removed", metric, "KL from dense", "loss"):
        table.add_column(column, justify="right")
    for result in results:
        numbers = [f"{100 * result['removed']:.1f}", f"{result['score']:.1f}"]
        numbers += [f"{result['divergence']:.4f}", f"{result['loss']:.3f}"]
        table.add_row(str(result["ratio"]), result["method"], *numbers)
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.ablations")
