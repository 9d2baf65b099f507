r"""One-shot scores of the presets, of what is left of them without their parts, and of peers: no re-finetuning.

All from one calibration of each dense model.

Example:
    ::

        python -m pgb_lightning.ablations sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR

    Over dense models of several seeds, with mean and spread::

        python -m pgb_lightning.ablations sst2 '[runs/sst2/seed0/dense.ckpt, runs/sst2/seed1/dense.ckpt]' --data_dir DIR

    Beside other people's methods, which are named in :data:`pgb_lightning.peers.PEERS`::

        python -m pgb_lightning.ablations sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR \\
          --methods [default,paper,kwon,magnitude,top-layers,torch-pruning]
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.architectures import find_encoder
from pgb_lightning.bench import Bench
from pgb_lightning.budget import Demand, allocate
from pgb_lightning.candidates import Candidate, list_candidates
from pgb_lightning.config import PruningConfig
from pgb_lightning.importance import second_order_importance
from pgb_lightning.modules import TextClassification
from pgb_lightning.peers import PEERS
from pgb_lightning.peers.masks import mask_matrices
from pgb_lightning.plan import Index, PruningPlan
from pgb_lightning.pruning import make_plan, plan_matrix
from pgb_lightning.spread import spread
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


def fixed_groups(bench: Bench, config: PruningConfig, candidates: Candidates, number: int | None = None) -> PruningPlan:
    """Allow no group number but one, beside whole and pruned whole; by default as many as there can be.

    A matrix with as many groups as its shorter side keeps one diagonal.
    """
    plan = make_plan(bench.encoder, bench.statistics, config, candidates)
    importances = {
        key: second_order_importance(linear.weight.T, bench.statistics.fisher[key])
        for key, linear in bench.encoder.linears()
    }
    demands = {}
    for key, importance in importances.items():
        groups = min(importance.shape) if number is None else number
        demand = Demand.of(importance, groups)
        demands[key] = replace(demand, thresholds={g: t for g, t in demand.thresholds.items() if g in (0, groups)})
    numbers, _ = allocate(demands, config)
    matrices = (plan_matrix(key, importances[key], numbers[key], config) for key in importances)
    return replace(plan, matrices=tuple(matrices))


@dataclass(frozen=True)
class Method:
    """A way to prune, made of the parts of ours.

    Args:
        preset: The preset it starts from.
        settings: What is set otherwise.
        plan: Makes the plan.
        masked: Whether each matrix keeps as many weights as the plan says, but the most important ones, wherever they
            are: unstructured, and without compensation.
    """

    preset: str
    settings: dict[str, Any] = field(default_factory=dict)
    plan: Callable[[Bench, PruningConfig, Candidates], PruningPlan] = as_set
    masked: bool = False

    def config(self, ratio: float) -> PruningConfig:
        """Return the settings at a ratio."""
        return PruningConfig.from_preset(self.preset, pruning_ratio=ratio, **self.settings)


METHODS: dict[str, Method] = {
    "default": Method("default"),
    "balanced": Method("balanced"),
    "paper": Method("paper"),
    "default, ridge 0.01": Method("default", {"ridge": 0.01}),
    "default, no compensation": Method("default", {"compensation": False}),
    "default, unstructured": Method("default", masked=True),
    "paper, no compensation": Method("paper", {"compensation": False}),
    "paper, no permutation": Method("paper", plan=unpermuted),
    "paper, unstructured": Method("paper", masked=True),
    "paper, magnitude": Method("paper", plan=by_magnitude),
    "paper, fixed G = 6": Method("paper", plan=partial(fixed_groups, number=6)),
    "paper, full diagonal": Method("paper", plan=fixed_groups),
}


@dataclass(frozen=True)
class Pruned:
    """What a method makes of a dense model.

    Args:
        module: The pruned module.
        removed: The share of the encoder's weights that it lacks.
        kind: ``"shapes"`` if layers are smaller; ``"masks"`` if they have zeros.
        shapes: What the search over shapes chose, if there was one.
    """

    module: TextClassification
    removed: float
    kind: Literal["shapes", "masks"] = "shapes"
    shapes: list[str] | None = None


def prune(bench: Bench, name: str, ratio: float, candidates: Candidates) -> Pruned:
    """Prune a copy of the dense model by a method or a peer.

    Args:
        bench: The dense model and its calibration.
        name: One of :data:`METHODS` or :data:`~pgb_lightning.peers.PEERS`.
        ratio: Share of the weights to remove.
        candidates: For the search over shapes.
    """
    if name in PEERS:
        module = copy.deepcopy(bench.module)
        return Pruned(module, bench.peers.prune(name, module.model, ratio), PEERS[name].kind)
    method, config = METHODS[name], METHODS[name].config(ratio)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a missed target shows in the table
        plan = method.plan(bench, config, candidates)
    if not method.masked:
        return Pruned(bench.pruned(plan, config), plan.pruning_ratio, shapes=plan.config.get("shapes"))
    module = copy.deepcopy(bench.module)
    encoder, fisher = find_encoder(module), bench.statistics.fisher
    importances = {key: second_order_importance(linear.weight.T, fisher[key]) for key, linear in encoder.linears()}
    mask_matrices(encoder, importances, {(m.layer, m.kind): m.kept_share for m in plan.matrices})
    return Pruned(module, plan.pruning_ratio, "masks")


def run(
    task: str,
    ckpt_path: tuple[str, ...] | str,
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
        ckpt_path: Lightning checkpoint of a dense `TextClassification`, such as the experiment leaves; or a list of
            them, such as those of several seeds.
        data_dir: Local parquet folder; the Hub if not given.
        model_name_or_path: Where the tokenizer comes from.
        ratios: Values of ``pruning_ratio``.
        methods: Which to run, by name, peers among them; without the peers if not given.
        max_train_samples: Training rows that the calibration rows are drawn from; all if not given.
        calibration_size: Calibration rows; 2,048 if not given.
        seed: Draws them.
        num_threads: CPU threads.
        out: A JSON file for the results and the shapes that were chosen.

    Returns:
        The results, one a checkpoint, ratio and method.

    Raises:
        ValueError: A checkpoint is not there, a method is unknown, or needs a package that is not installed.
    """
    known = (*METHODS, *PEERS)
    if unknown := [name for name in methods if name not in known]:
        raise ValueError(f"methods names {unknown[0]!r}, which is none of {', '.join(map(repr, known))}.")
    for name in methods:
        if name in PEERS:
            PEERS[name].check()
    paths = [ckpt_path] if isinstance(ckpt_path, str) else list(dict.fromkeys(ckpt_path))
    if not paths or not all(Path(path).is_file() for path in paths):
        raise ValueError(f"ckpt_path={paths} must be a checkpoint's file, or a list of some.")
    torch.set_num_threads(num_threads)
    searched = any(name in METHODS and METHODS[name].config(0.5).search == "shapes" for name in methods)
    dense: dict[str, Any] = {}
    results: list[dict[str, Any]] = []
    for path in paths:
        bench = Bench.load(task, path, data_dir, model_name_or_path, max_train_samples, calibration_size, seed)
        dense[path] = asdict(bench.measure(bench.module))
        candidates = list_candidates(bench.encoder, bench.statistics, PruningConfig()) if searched else []
        for ratio in ratios:
            for name in methods:
                pruned = prune(bench, name, ratio, candidates)
                found: dict[str, Any] = {"checkpoint": path, "ratio": ratio, "method": name, "kind": pruned.kind}
                found |= {"removed": pruned.removed, **asdict(bench.measure(pruned.module))}
                results.append({**found, "shapes": pruned.shapes} if pruned.shapes else found)
                if out:
                    Path(out).write_text(json.dumps({"task": task, "dense": dense, "results": results}, indent=1))
    Console(width=120).print(_table(task, dense, results))
    return results


def _in_order(index: Index) -> Index:
    if not index:
        return index
    size = len(index[0])
    return tuple(tuple(range(g * size, (g + 1) * size)) for g in range(len(index)))


def _table(task: str, dense: dict[str, Any], results: list[dict[str, Any]]) -> Table:
    """Tabulate results: mean and standard deviation over dense models, where there are several."""
    metric = get_task(task).metrics[0]
    scores = spread([measured["score"] for measured in dense.values()])
    table = Table(title=f"{task}, one-shot, before re-finetuning; {metric} x 100 (dense {scores})")
    for column in ("ratio", "method", "what is left", "removed", metric, "KL from dense", "loss"):
        table.add_column(column, justify="right")
    for ratio, method in dict.fromkeys((result["ratio"], result["method"]) for result in results):
        rows = [result for result in results if (result["ratio"], result["method"]) == (ratio, method)]
        numbers = [spread([100 * row["removed"] for row in rows])]
        numbers += [
            spread([row[name] for row in rows], digits)
            for name, digits in {"score": 1, "divergence": 4, "loss": 3}.items()
        ]
        table.add_row(str(ratio), method, rows[0]["kind"], *numbers)
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.ablations")
