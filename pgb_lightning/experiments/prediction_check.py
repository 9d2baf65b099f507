"""Rank correlation of predicted and measured loss increases, with one sublayer pruned at a time.

Example:
    ::

        python -m pgb_lightning.experiments.prediction_check sst2 runs/sst2/seed0/dense.ckpt --data_dir DIR
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from pgb_lightning.compensation.fit import SublayerFit
from pgb_lightning.compensation.streams import Stream
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.dense_reference import DenseReference, Evaluation
from pgb_lightning.experiments.layer_runs import runs_of
from pgb_lightning.modules import TextClassification
from pgb_lightning.search.candidates import Candidate, list_candidates
from pgb_lightning.shapes import Groups
from pgb_lightning.surgery.apply import prune_sublayer


def run(
    task: str,
    ckpt_path: str,
    data_dir: str | None = None,
    model_name_or_path: str | None = None,
    candidates: int = 6,
    tokens: int = 8192,
    max_train_samples: int | None = None,
    calibration_size: int | None = None,
    seed: int = 0,
    num_threads: int = 1,
    out: str | None = None,
) -> dict[str, float]:
    """Prune each sublayer alone, in several shapes, and compare the predicted with the measured loss increases.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense ``TextClassification``, such as
            :mod:`pgb_lightning.experiments.seeds` writes.
        data_dir: Local folder of parquet files; the Hub if not given.
        model_name_or_path: Name or path of the tokenizer; that of the checkpoint's model if not given.
        candidates: Number of shapes drawn for each sublayer, half of them with groups. They are spread evenly over the
            sublayer's candidates in the order of predicted loss.
        tokens: Calibration tokens for compensation.
        max_train_samples: Number of training rows, from which the calibration rows are drawn; all if not given.
        calibration_size: Number of calibration rows; 2,048 if not given.
        seed: Seed for drawing the rows and the candidates.
        num_threads: CPU threads.
        out: CSV file for the values of each candidate.

    Returns:
        Spearman's rank correlation of the predicted increase with the measured loss and with the divergence from the
        dense model, for each kind of sublayer, for each kind of shape, and for all.
    """
    torch.set_num_threads(num_threads)
    reference = DenseReference.load(
        task=task,
        ckpt_path=ckpt_path,
        data_dir=data_dir,
        model_name_or_path=model_name_or_path,
        max_train_samples=max_train_samples,
        calibration_size=calibration_size,
        seed=seed,
    )
    config = PruningConfig(ridge=0.01)  # the ridge of the predictions
    available = list_candidates(reference.encoder, reference.statistics, config)
    generator = random.Random(seed)
    drawn = [_draw(options[1:], candidates, generator) for options in available]
    results = list(_evaluate(reference, drawn, config, tokens))
    if out:
        lines = [
            f'{c.layer},{c.sublayer},"{c.shape}",{c.parameters},{c.loss},{m.loss},{m.divergence},{m.score}'
            for c, m in results
        ]
        Path(out).write_text("\n".join(["layer,sublayer,shape,parameters,predicted,loss,divergence,score", *lines, ""]))
    return _report(results)


def _draw(options: list[Candidate], count: int, generator: random.Random) -> list[Candidate]:
    """Draw candidates evenly over the range of predicted losses: half with groups, and half without."""
    drawn: list[Candidate] = []
    for with_groups in (False, True):
        part = [candidate for candidate in options if isinstance(candidate.shape, Groups) == with_groups]
        ranked = sorted(part, key=lambda candidate: candidate.loss)
        number = min(count // 2 if with_groups else count - count // 2, len(ranked))
        cuts = [len(ranked) * i // number for i in range(number + 1)] if number else []
        drawn += [generator.choice(ranked[low:high]) for low, high in pairwise(cuts)]
    return drawn


@torch.no_grad()
def _evaluate(
    reference: DenseReference, drawn: list[list[Candidate]], config: PruningConfig, tokens: int
) -> Iterator[tuple[Candidate, Evaluation]]:
    """Prune and compensate one sublayer at a time, with the rest of the model dense, and evaluate the model."""
    encoder, streams, num_tokens = reference.encoder, [], 0
    for layer_input in reference.statistics.inputs:
        if num_tokens < tokens:
            streams.append(Stream(layer_input, encoder.model.device))
            num_tokens += int(layer_input.tokens.sum())
    remaining = iter(drawn)
    for layer in range(encoder.num_layers):
        original = copy.deepcopy(encoder.layers[layer])
        runs = runs_of(encoder, layer, original, streams)
        for sublayer in SUBLAYERS:
            for candidate in next(remaining):
                module: TextClassification = copy.deepcopy(reference.module)
                pruned = find_encoder(module)
                features = prune_sublayer(pruned, layer, sublayer, candidate.matrices)
                fit = SublayerFit(pruned, original, layer, sublayer, features, config.ridge, lambda tensor: tensor)
                fit.compensate([copy.copy(run) for run in runs])
                yield candidate, reference.evaluate(module)
            for run in runs:
                run.dense = run.pruned = run.run(encoder, original, sublayer, run.dense)


def _report(results: list[tuple[Candidate, Evaluation]]) -> dict[str, float]:
    table = Table(title="Spearman's rank correlation of the predicted loss increase with measured values")
    for column in ("shapes", "candidates", "loss", "divergence"):
        table.add_column(column, justify="right")
    correlations: dict[str, float] = {}
    kinds = sorted({_kind(candidate) for candidate, _ in results})
    for name in (*SUBLAYERS, *kinds, "all"):
        chosen = [(c, m) for c, m in results if name in (c.sublayer, _kind(c), "all")]
        if len(chosen) < 3:
            continue  # the rank correlation of two values is always 1 or -1
        predicted = torch.tensor([c.loss for c, _ in chosen])
        correlations[f"{name}_loss"] = _spearman(predicted, torch.tensor([m.loss for _, m in chosen]))
        correlations[f"{name}_divergence"] = _spearman(predicted, torch.tensor([m.divergence for _, m in chosen]))
        columns = [f"{correlations[f'{name}_{what}']:.3f}" for what in ("loss", "divergence")]
        table.add_row(name, str(len(chosen)), *columns)
    Console(width=100).print(table)
    return correlations


def _kind(candidate: Candidate) -> str:
    """Return the kind of a candidate's shape."""
    if not isinstance(candidate.shape, Groups):
        return "fewer heads" if candidate.sublayer == "attention" else "fewer neurons"
    if any(matrix.num_groups == 0 for matrix in candidate.matrices):
        return "Q or K removed"
    return f"{candidate.sublayer} groups"


def _spearman(a: Tensor, b: Tensor) -> float:
    return float(spearman_corrcoef(a, b))


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.prediction_check")
