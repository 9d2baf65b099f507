"""The models compared by a benchmark."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.grouping.group_numbers import allowed_groups
from pgb_lightning.plan import Index, MatrixPlan, PruningPlan
from pgb_lightning.pruning import make_plan
from pgb_lightning.surgery.apply import apply_plan


def random_model(model_type: str, num_layers: int | None) -> PreTrainedModel:
    """Create a dense model of base size with random weights.

    Args:
        model_type: The transformers ``model_type``. The defaults of its configuration are the base size.
        num_layers: Number of layers; by default that of the base size.

    Raises:
        ValueError: If the model type is not supported.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"architecture={model_type!r} is not supported. Choose one of {', '.join(sorted(FAMILIES))}.")
    torch.manual_seed(0)
    layers = {} if num_layers is None else {_layers_name(model_type): num_layers}
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model(model_type, **layers)
    )
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
    return make_plan(encoder, Calibration(fisher, [], 0, 0), PruningConfig.from_preset("paper", pruning_ratio=ratio))


def uniform_group_plan(encoder: Encoder, number: int, shared_neurons: bool = False) -> PruningPlan:
    """Return a plan with the same number of groups in every matrix, with random inputs and outputs in each group.

    Args:
        encoder: A dense encoder.
        number: The group number G.
        shared_neurons: Whether the input groups of W2 are the output groups of W1.

    Raises:
        ValueError: If the number does not divide both dimensions of a matrix.
    """
    generator = torch.Generator().manual_seed(0)
    matrices: list[MatrixPlan] = []
    for (layer, kind), linear in encoder.linears():
        rows, columns = linear.in_features, linear.out_features
        if number not in allowed_groups(rows, columns, number):
            raise ValueError(f"num_groups={number} does not divide both dimensions of a {rows} x {columns} matrix.")
        inputs, outputs = _random_groups(rows, number, generator), _random_groups(columns, number, generator)
        if shared_neurons and kind == "W2":
            inputs = matrices[-1].output_index
        matrices.append(MatrixPlan(layer, kind, rows, columns, inputs, outputs))
    return PruningPlan(encoder.model_type, tuple(matrices))


def _random_groups(size: int, number: int, generator: torch.Generator) -> Index:
    """Split ``size`` indices into random groups of equal size."""
    groups = torch.randperm(size, generator=generator).view(number, -1).sort().values
    return tuple(map(tuple, groups.tolist()))


def narrow_plan(encoder: Encoder, ratio: float) -> PruningPlan:
    """Return a plan that keeps the first heads and neurons of every layer, as many as the ratio allows.

    The result is a narrower dense model. No grouping with as many parameters can be faster.
    """
    linears = dict(encoder.linears())
    width = linears[0, "Q"].in_features
    heads, neurons = width // encoder.head_size, linears[0, "W1"].out_features
    kept_heads = max(1, round(heads * (1 - ratio)))
    inside = kept_heads * encoder.head_size
    budget = (1 - ratio) * (4 * width * width + 2 * width * neurons) - 4 * width * inside
    kept_neurons = min(neurons, max(1, round(budget / (2 * width))))

    def planned(layer: int, kind: str, linear: nn.Linear) -> MatrixPlan:
        rows, columns = tuple(range(linear.in_features)), tuple(range(linear.out_features))
        if kind in ("O", "W2"):
            rows = rows[: inside if kind == "O" else kept_neurons]
        else:
            columns = columns[: kept_neurons if kind == "W1" else inside]
        return MatrixPlan(layer, kind, linear.in_features, linear.out_features, (rows,), (columns,))

    matrices = [planned(layer, kind, linear) for (layer, kind), linear in linears.items()]
    return PruningPlan(encoder.model_type, tuple(matrices))


def _layers_name(model_type: str) -> str:
    return "n_layers" if model_type == "distilbert" else "num_hidden_layers"
