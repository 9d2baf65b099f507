"""Does the predicted rise of the loss rank shapes as the measured one does? One sublayer pruned at a time.

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

from pgb_lightning.compensation.fit import Stream, SublayerFit
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.dense_reference import DenseReference, Measured
from pgb_lightning.modules import TextClassification
from pgb_lightning.search.candidates import Candidate, list_candidates
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
    """Prune one sublayer after the other, in several shapes each, and compare predicted with measured.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense `TextClassification`, such as the experiment leaves.
        data_dir: Local parquet folder; the Hub if not given.
        model_name_or_path: Where the tokenizer comes from; from where the model came if not given.
        candidates: Shapes drawn for each sublayer, evenly over its list in the order of predicted loss, half of them
            in groups.
        tokens: Calibration tokens that the sublayer is compensated on.
        max_train_samples: Training rows that the calibration rows are drawn from; all if not given.
        calibration_size: Calibration rows; 2,048 if not given.
        seed: Draws them, and the candidates.
        num_threads: CPU threads.
        out: A CSV file for every single candidate.

    Returns:
        Spearman's rank correlation of the predicted rise with the measured loss and divergence, for each kind of
        sublayer, for each kind of shape, and for all.
    """
    torch.set_num_threads(num_threads)
    reference = DenseReference.load(
        task, ckpt_path, data_dir, model_name_or_path, max_train_samples, calibration_size, seed
    )
    config = PruningConfig(ridge=0.01)  # as predictions have it
    found = list_candidates(reference.encoder, reference.statistics, config)
    chooser = random.Random(seed)
    drawn = [_draw(options[1:], candidates, chooser) for options in found]
    results = list(_measure(reference, drawn, config, tokens))
    if out:
        lines = [
            f'{c.layer},{c.sublayer},"{c.shape}",{c.parameters},{c.loss},{m.loss},{m.divergence},{m.score}'
            for c, m in results
        ]
        Path(out).write_text("\n".join(["layer,sublayer,shape,parameters,predicted,loss,divergence,score", *lines, ""]))
    return _report(results)


def _draw(options: list[Candidate], count: int, chooser: random.Random) -> list[Candidate]:
    """Draw candidates from all over a list: half of them in groups, and half without, of which there are fewer."""
    drawn: list[Candidate] = []
    for in_groups in (False, True):
        part = [candidate for candidate in options if ("groups" in candidate.shape) == in_groups]
        ranked = sorted(part, key=lambda candidate: candidate.loss)
        number = min(count // 2 if in_groups else count - count // 2, len(ranked))
        cuts = [len(ranked) * i // number for i in range(number + 1)] if number else []
        drawn += [chooser.choice(ranked[low:high]) for low, high in pairwise(cuts)]
    return drawn


@torch.no_grad()
def _measure(
    reference: DenseReference, drawn: list[list[Candidate]], config: PruningConfig, tokens: int
) -> Iterator[tuple[Candidate, Measured]]:
    """Prune and compensate one sublayer; the rest of the model stays dense."""
    encoder, streams, seen = reference.encoder, [], 0
    for given in reference.statistics.inputs:
        if seen < tokens:
            streams.append(Stream(given, encoder.model.device))
            seen += int(given.tokens.sum())
    places = [(layer, sublayer) for layer in range(len(encoder.layers)) for sublayer in SUBLAYERS]
    for (layer, sublayer), options in zip(places, drawn, strict=True):
        original = copy.deepcopy(encoder.layers[layer])
        for candidate in options:
            module: TextClassification = copy.deepcopy(reference.module)
            pruned = find_encoder(module)
            hidden = prune_sublayer(pruned, layer, sublayer, candidate.matrices)
            fit = SublayerFit(pruned, original, layer, sublayer, hidden, config.ridge, lambda tensor: tensor)
            fit.compensate([copy.copy(stream) for stream in streams])
            yield candidate, reference.measure(module)
        for stream in streams:
            stream.dense = stream.pruned = stream.run(encoder, original, sublayer, stream.dense)


def _report(results: list[tuple[Candidate, Measured]]) -> dict[str, float]:
    table = Table(title="Spearman's rank correlation of the predicted rise of the loss with what was measured")
    for column in ("shapes", "candidates", "loss", "divergence"):
        table.add_column(column, justify="right")
    correlations: dict[str, float] = {}
    kinds = sorted({_kind(candidate) for candidate, _ in results})
    for name in (*SUBLAYERS, *kinds, "all"):
        chosen = [(c, m) for c, m in results if name in (c.sublayer, _kind(c), "all")]
        if len(chosen) < 3:
            continue  # any two are ranked rightly or wrongly
        predicted = torch.tensor([c.loss for c, _ in chosen])
        correlations[f"{name}_loss"] = _spearman(predicted, torch.tensor([m.loss for _, m in chosen]))
        correlations[f"{name}_divergence"] = _spearman(predicted, torch.tensor([m.divergence for _, m in chosen]))
        columns = [f"{correlations[f'{name}_{what}']:.3f}" for what in ("loss", "divergence")]
        table.add_row(name, str(len(chosen)), *columns)
    Console(width=100).print(table)
    return correlations


def _kind(candidate: Candidate) -> str:
    """Say what kind of shape a candidate is."""
    if "groups" not in candidate.shape:
        return "fewer heads" if candidate.sublayer == "attention" else "fewer neurons"
    if any(matrix.num_groups == 0 for matrix in candidate.matrices):
        return "Q or K pruned whole"
    return f"{candidate.sublayer} groups"


def _spearman(a: Tensor, b: Tensor) -> float:
    return float(spearman_corrcoef(a, b))


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.prediction_check")
