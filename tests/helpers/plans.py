"""Random plans of every kind, and the dense model that a plan stands for."""

from __future__ import annotations

import copy
import random

import torch
from torch import nn

from helpers.kinds import SUBLAYERS
from pgb_lightning import MatrixPlan, PruningPlan
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.plan import Index


def random_plan(encoder: Encoder, rng: random.Random) -> PruningPlan:
    """Return a plan with dense, grouped, partly covered, narrowed and dropped sublayers, some without Q or K."""
    matrices = []
    for layer in range(len(encoder.layers)):
        for sublayer, kinds in SUBLAYERS.items():
            form = rng.choice(("dense", "groups", "partial", "narrow", "narrow groups", "dropped"))
            sizes = {kind: encoder.matrix_size(kind, encoder.inner_size(sublayer)) for kind in kinds}
            unit = encoder.unit(sublayer)
            inner = encoder.inner_size(sublayer)
            units = rng.sample(range(inner // unit), rng.randint(1, inner // unit)) if "narrow" in form else None
            kept = None if units is None else [u * unit + f for u in sorted(units) for f in range(unit)]
            for kind in kinds:
                rows, columns = _blocks(form, sizes[kind], kept, kind == kinds[-1], rng)
                if form != "dropped" and kind in ("Q", "K") and rng.random() < 0.2:
                    rows, columns = (), ()
                matrices.append(MatrixPlan(layer, kind, *sizes[kind], rows, columns))
    return PruningPlan(encoder.model_type, tuple(matrices))


def _blocks(
    form: str, size: tuple[int, int], kept: list[int] | None, closes: bool, rng: random.Random
) -> tuple[Index, Index]:
    if form == "dense":
        return None, None
    if form == "dropped":
        return (), ()
    rows, columns = (list(range(features)) for features in size)
    if kept is not None:
        rows, columns = (list(kept), columns) if closes else (rows, list(kept))
        if form == "narrow":
            return (tuple(rows),), (tuple(columns),)
    groups = rng.choice([g for g in (1, 2, 3, 4, 6) if g <= min(len(rows), len(columns))])
    divides = form != "partial" and len(rows) % groups == 0 and len(columns) % groups == 0
    shape = [len(side) // groups if divides else rng.randint(1, len(side) // groups) for side in (rows, columns)]
    rng.shuffle(rows)
    rng.shuffle(columns)
    return _split(rows, groups, shape[0]), _split(columns, groups, shape[1])


def _split(features: list[int], groups: int, size: int) -> Index:
    return tuple(tuple(features[g * size : (g + 1) * size]) for g in range(groups))


def randomize_vectors(model: nn.Module, seed: int = 0) -> None:
    """Give biases and norms random values, since the zeros and ones of a new model hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def masked(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a copy of a dense model with zeros for the weights that a plan removes: what pruning must compute."""
    dense = copy.deepcopy(model)
    encoder = find_encoder(dense)
    with torch.no_grad():
        for (layer, kind), linear in encoder.linears():
            matrix = plan.matrix(layer, kind)
            if matrix.input_index is None or matrix.output_index is None:
                continue
            keep = torch.zeros(matrix.columns, matrix.rows, dtype=torch.bool)
            for rows, columns in zip(matrix.input_index, matrix.output_index, strict=True):
                keep[torch.tensor(columns).unsqueeze(1), torch.tensor(rows)] = True
            linear.weight.mul_(keep)
    return dense
