"""Random plans of every kind, and the dense model that a plan stands for."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Sequence

import torch
from torch import nn

from pgb_lightning import MatrixPlan, PruningPlan
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import EXPENDABLE, KEY_VALUE, Sublayer
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.plan import Index

#: What a random plan can do to a sublayer.
FORMS = ("dense", "groups", "partial", "narrow", "narrow groups", "dropped")


def random_plan(encoder: Encoder, rng: random.Random, forms: Sequence[str] = FORMS) -> PruningPlan:
    """Return a plan with dense, grouped, partly covered, narrowed and dropped sublayers, some without Q or K.

    Args:
        encoder: The dense encoder.
        rng: Decides.
        forms: The forms that a sublayer may get.
    """
    matrices = []
    for layer in range(len(encoder.layers)):
        for sublayer, kinds in encoder.sublayers.items():
            form = rng.choice(forms)
            sizes = {kind: encoder.matrix_size(kind, encoder.inner_size(sublayer)) for kind in kinds}
            count = encoder.inner_size(sublayer) // unit_of(encoder, sublayer)
            units = rng.sample(range(count), rng.randint(1, count)) if "narrow" in form else None
            for kind in kinds:
                kept = None if units is None else features_of(encoder, sublayer, kind, units)
                rows, columns = _blocks(form, sizes[kind], kept, kind == kinds[-1], rng)
                if form != "dropped" and kind in EXPENDABLE and rng.random() < 0.2:
                    rows, columns = (), ()
                matrices.append(MatrixPlan(layer, kind, *sizes[kind], rows, columns))
    return PruningPlan(encoder.model_type, tuple(matrices))


def unit_of(encoder: Encoder, sublayer: Sublayer) -> int:
    """Return the size of what a plan removes together: a group of heads or a neuron, in models that need all too."""
    return encoder.head_group if sublayer == "attention" else 1


def features_of(encoder: Encoder, sublayer: Sublayer, kind: str, units: Collection[int]) -> list[int]:
    """Return the inner features of a matrix that belong to some neurons, or groups of heads, of a dense sublayer."""
    unit = unit_of(encoder, sublayer) // (encoder.queries_per_key if kind in KEY_VALUE else 1)
    return [number * unit + feature for number in sorted(units) for feature in range(unit)]


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
            encoder.store(layer, kind, linear)
    return dense
