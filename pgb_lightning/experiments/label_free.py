r"""Scores of models pruned in one shot with and without labels, to compare the gradients that calibration can use.

Models, rows, settings and compensation are the same; only the loss whose gradients are collected differs.

Example:
    ::

        python -m pgb_lightning.experiments.label_free sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR \
          --ratios [0.5,0.7,0.88] --seeds [0,1,2] --out label-free.jsonl
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning.config import Fisher, PruningConfig
from pgb_lightning.experiments.checkpoint_files import hash_file, require_file
from pgb_lightning.experiments.dense_reference import DenseReference, Evaluation
from pgb_lightning.experiments.mean_std import format_mean_std
from pgb_lightning.experiments.methods import Candidates
from pgb_lightning.experiments.missed_targets import ignore_missed_targets
from pgb_lightning.experiments.records import Result, ResultFile
from pgb_lightning.glue_tasks import get_task
from pgb_lightning.pruning import make_plan
from pgb_lightning.search.candidates import list_candidates


@dataclass(frozen=True)
class Gradients:
    """The gradients that calibration uses.

    Args:
        fisher: The setting of :class:`~pgb_lightning.PruningConfig`.
        temperature: The setting ``fisher_temperature``.
        draws: Number of draws for each row, whose statistics are averaged.
    """

    fisher: Fisher
    temperature: float = 1.0
    draws: int = 1


#: The gradients to compare. In regression, values drawn from the predictions are directions of the only output.
KINDS: dict[str, Gradients] = {
    "labels": Gradients("labels"),
    "predictions": Gradients("predictions"),
    "predictions, T = 2": Gradients("predictions", temperature=2.0),
    "outputs": Gradients("outputs"),
    "predictions, 4 draws": Gradients("predictions", draws=4),
}


class Draw:
    """A dense model with one draw of calibration rows, which is loaded only when needed.

    Args:
        arguments: Arguments of :meth:`DenseReference.load`.
    """

    def __init__(self, **arguments: object) -> None:
        self._arguments = arguments

    @cached_property
    def reference(self) -> DenseReference:
        """The dense model, calibrated with labels."""
        return DenseReference.load(**self._arguments)  # type: ignore[arg-type]

    @cached_property
    def dense(self) -> Evaluation:
        """The scores of the dense model."""
        return self.reference.evaluate(self.reference.module)

    def measure(self, gradients: Gradients, ratios: Iterable[float]) -> Iterable[Result]:
        """Prune by gradients of one kind, and evaluate.

        Args:
            gradients: The gradients.
            ratios: Values of ``pruning_ratio``.

        Yields:
            One result for each ratio.
        """
        reference = self.reference
        statistics = reference.calibrate(**asdict(gradients))
        candidates: Candidates = []
        for ratio in ratios:
            config = PruningConfig(pruning_ratio=ratio)
            candidates = candidates or list_candidates(reference.encoder, statistics, config)
            with ignore_missed_targets():
                plan = make_plan(reference.encoder, statistics, config, candidates)
            found = reference.evaluate(reference.pruned(plan, config))
            yield {"ratio": ratio, "removed": plan.pruning_ratio, **asdict(found), "dense": self.dense.score}


def run(
    task: str,
    ckpt_path: str,
    data_dir: str | None = None,
    ratios: tuple[float, ...] = (0.5, 0.7, 0.88),
    kinds: tuple[str, ...] = tuple(KINDS),
    seeds: tuple[int, ...] = (0, 1, 2),
    model_name_or_path: str | None = None,
    max_train_samples: int | None = None,
    calibration_size: int | None = None,
    max_validation_samples: int | None = None,
    num_threads: int = 1,
    out: str | None = None,
) -> list[Result]:
    """Prune one dense model with gradients of several kinds, and print the scores.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense ``TextClassification``, such as
            :mod:`pgb_lightning.experiments.seeds` writes.
        data_dir: Local folder of parquet files; the Hub if not given.
        ratios: Values of ``pruning_ratio``.
        kinds: Names in :data:`KINDS`.
        seeds: Seeds for drawing the calibration rows.
        model_name_or_path: Name or path of the tokenizer; that of the checkpoint's model if not given.
        max_train_samples: Number of training rows, from which the calibration rows are drawn; all if not given.
        calibration_size: Number of calibration rows; 2,048 if not given.
        max_validation_samples: Number of validation rows; all if not given.
        num_threads: CPU threads.
        out: JSON-lines file of results, which are reused by later runs.

    Returns:
        The results.

    Raises:
        ValueError: If a kind is unknown, a ratio is out of range, or the checkpoint does not exist or is of another
            task.
    """
    require_file(ckpt_path)
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # raises if out of range
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds={unknown[0]!r} is unknown. Use {', '.join(map(repr, KINDS))}.")
    if get_task(task).is_regression:
        kinds = tuple(kind for kind in kinds if kind in ("labels", "outputs"))
    torch.set_num_threads(num_threads)
    file = ResultFile(out)
    settings: Result = {
        "task": task,
        "weights": hash_file(ckpt_path),
        "data_dir": data_dir,
        "max_train_samples": max_train_samples,
        "calibration_size": calibration_size,
        "max_validation_samples": max_validation_samples,
    }
    results: list[Result] = []
    for seed in seeds:
        known: Result = {**settings, "seed": seed}
        draw = Draw(
            task=task,
            ckpt_path=ckpt_path,
            data_dir=data_dir,
            model_name_or_path=model_name_or_path,
            max_train_samples=max_train_samples,
            calibration_size=calibration_size,
            seed=seed,
            max_validation_samples=max_validation_samples,
        )
        for kind in kinds:
            found = {ratio: file.find({**known, "kind": kind, "ratio": ratio}) for ratio in ratios}
            missing = [ratio for ratio, result in found.items() if result is None]
            for result in draw.measure(KINDS[kind], missing) if missing else ():
                file.add(complete := {**known, "kind": kind, **result})
                found[result["ratio"]] = complete
            results += [result for result in found.values() if result is not None]
    Console(width=120).print(tabulate(results, kinds, ratios))
    return results


def tabulate(results: Sequence[Result], kinds: Sequence[str], ratios: Sequence[float]) -> Table:
    """Make a table of the score and the divergence from the dense model, mean and standard deviation over draws.

    Args:
        results: The results.
        kinds: The rows of the table.
        ratios: The columns of the table.
    """
    table = Table(title="score / KL from dense, one-shot")
    for column in ("gradients of", *(f"{ratio:.0%} removed" for ratio in ratios)):
        table.add_column(column, justify="left" if column == "gradients of" else "right")
    for kind in kinds:
        cells = []
        for ratio in ratios:
            chosen = [result for result in results if result["kind"] == kind and result["ratio"] == ratio]
            score = format_mean_std([result["score"] for result in chosen])
            cells.append(f"{score} / {format_mean_std([result['divergence'] for result in chosen], digits=4)}")
        table.add_row(kind, *cells)
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.label_free")
