"""The models compared by a benchmark."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from pgb_lightning.benchmark.configurations import full_size_config
from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import Sublayer, sublayer_of
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.grouping.group_numbers import allowed_groups
from pgb_lightning.grouping.planning import plan_at_rank
from pgb_lightning.plan import Index, MatrixPlan, PruningPlan
from pgb_lightning.surgery.apply import apply_plan


def random_model(architecture: str, num_layers: int | None = None, **settings: Any) -> PreTrainedModel:
    """Create a dense model with random weights.

    Args:
        architecture: Name of a published configuration, or a ``model_type`` for the base size of its family.
        num_layers: Number of layers; by default that of the configuration.
        settings: Other settings that replace those of the configuration.

    Raises:
        ValueError: If the architecture is not supported.
    """
    config = full_size_config(architecture, num_layers, **settings)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    model.train(False)
    return model


def pruned_models(
    dense: PreTrainedModel, ratios: Sequence[float], numbers: Sequence[int] = (), plan: PruningPlan | None = None
) -> dict[str, PreTrainedModel]:
    """Prune copies of a dense model with plans that do not depend on its weights.

    Args:
        dense: The dense model.
        ratios: Pruning ratios. For each there is a model with the paper's groups, and one with fewer heads and neurons.
        numbers: Group numbers. For each there is a model with that number of groups in every matrix, and one whose W1
            and W2 share the groups of neurons, as with ``permutation="compensated"``.
        plan: Another plan to apply.

    Returns:
        The models by name. The first is ``"dense"``, the given model.

    Raises:
        ValueError: If the plan does not match the encoder, or a group number does not divide a matrix.
    """
    encoder = find_encoder(dense)
    plans: dict[str, PruningPlan] = {} if plan is None else {"plan": plan}
    for ratio in ratios:
        plans[f"groups {ratio:g}"] = paper_plan(encoder, ratio)
        plans[f"narrow {ratio:g}"] = narrow_plan(encoder, ratio)
    for number in numbers:
        plans[f"G = {number}"] = uniform_group_plan(encoder, number)
        plans[f"G = {number}, shared neurons"] = uniform_group_plan(encoder, number, shared_neurons=True)
    models = {"dense": dense}
    for name, each in plans.items():
        models[name] = copy.deepcopy(dense)
        apply_plan(find_encoder(models[name]), each)
    return models


def paper_plan(encoder: Encoder, ratio: float) -> PruningPlan:
    """Return a plan of the paper's recipe for random importances: realistic shapes, random indices."""
    generator = torch.Generator().manual_seed(0)
    fisher = {
        key: torch.rand(linear.weight.T.shape, generator=generator).to(linear.weight.device)
        for key, linear in encoder.linears()
    }
    # Without data there are no predicted losses, so the largest τ is used.
    config = PruningConfig.from_preset("paper", pruning_ratio=ratio)
    return plan_at_rank(encoder, Calibration(fisher, [], 0, 0), config, rank=1.0)


def uniform_group_plan(encoder: Encoder, number: int, shared_neurons: bool = False) -> PruningPlan:
    """Return a plan with the same number of groups in every matrix, with random inputs and outputs in each group.

    Args:
        encoder: A dense encoder.
        number: The group number G.
        shared_neurons: Whether the input groups of W2 are the output groups of W1, and those of W3 if there is one.

    Raises:
        ValueError: If the number does not divide both dimensions of a matrix.
    """
    generator = torch.Generator().manual_seed(0)
    matrices: list[MatrixPlan] = []
    first, *_, closing = encoder.sublayers["ffn"]
    for (layer, kind), linear in encoder.linears():
        rows, columns = linear.in_features, linear.out_features
        if number not in allowed_groups(rows, columns, number):
            raise ValueError(f"num_groups={number} does not divide both dimensions of a {rows} x {columns} matrix.")
        inputs, outputs = (_random_groups(size, number, generator) for size in (rows, columns))
        if shared_neurons and kind == closing:
            inputs = matrices[-1].output_index
        elif shared_neurons and sublayer_of(kind) == "ffn" and kind != first:
            outputs = matrices[-1].output_index
        matrices.append(MatrixPlan(layer, kind, rows, columns, inputs, outputs))
    return PruningPlan(encoder.model_type, tuple(matrices))


def _random_groups(size: int, number: int, generator: torch.Generator) -> Index:
    """Split ``size`` indices into random groups of equal size."""
    groups = torch.randperm(size, generator=generator).view(number, -1).sort().values
    return tuple(map(tuple, groups.tolist()))


def narrow_plan(encoder: Encoder, ratio: float) -> PruningPlan:
    """Return a plan that keeps the first heads and neurons of every layer, as many as the ratio allows.

    The result is a narrower dense model. No grouping with as many parameters can be faster. Query heads that share keys
    and values are kept or removed together.
    """
    inner: dict[Sublayer, int] = {sublayer: encoder.inner_size(sublayer) for sublayer in encoder.sublayers}
    weights = {sublayer: _weights(encoder, sublayer, size) for sublayer, size in inner.items()}
    unit = encoder.head_group
    heads = max(1, round(inner["attention"] // unit * (1 - ratio)))
    kept: dict[Sublayer, int] = {"attention": heads * unit}
    budget = (1 - ratio) * sum(weights.values()) - _weights(encoder, "attention", kept["attention"])
    kept["ffn"] = min(inner["ffn"], max(1, round(budget * inner["ffn"] / weights["ffn"])))
    matrices = []
    for layer in range(encoder.num_layers):
        for kind in encoder.matrices:
            sublayer = sublayer_of(kind)
            rows, columns = (tuple(range(size)) for size in encoder.matrix_size(kind, kept[sublayer]))
            sizes = encoder.matrix_size(kind, inner[sublayer])
            matrices.append(MatrixPlan(layer, kind, *sizes, (rows,), (columns,)))
    return PruningPlan(encoder.model_type, tuple(matrices))


def _weights(encoder: Encoder, sublayer: Sublayer, inner: int) -> int:
    """Return the number of weights of a sublayer with a given number of inner features."""
    sizes = (encoder.matrix_size(kind, inner) for kind in encoder.sublayers[sublayer])
    return sum(rows * columns for rows, columns in sizes)
