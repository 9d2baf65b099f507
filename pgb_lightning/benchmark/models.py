"""The models that a benchmark compares."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import MATRICES, Encoder
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.grouping.group_numbers import allowed_groups
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.pruning import make_plan
from pgb_lightning.surgery.apply import apply_plan


def random_model(model_type: str, num_layers: int | None) -> PreTrainedModel:
    """Make a dense model of base size with random weights.

    Args:
        model_type: The transformers ``model_type``; its configuration's defaults are the base size.
        num_layers: Layers; as many as the base size has if not given.

    Raises:
        ValueError: There is no map of such a model.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"architecture={model_type!r} has no map; choose one of {', '.join(sorted(FAMILIES))}.")
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
    """Prune copies of a dense model, without looking at its weights.

    Args:
        dense: The dense model.
        ratios: Pruning ratios; at each a model in the paper's groups, and one with fewer heads and neurons.
        numbers: Group numbers; for each a model of which every matrix is cut into so many groups, and one where W1 and
            W2 group the neurons alike, as ``permutation="compensated"`` has it.
        plan: A plan to carry out as well.

    Returns:
        "dense" first, which is the model itself.

    Raises:
        ValueError: The plan belongs to another encoder, or a group number does not divide a matrix.
    """
    encoder = find_encoder(dense)
    plans: dict[str, PruningPlan] = {} if plan is None else {"plan": plan}
    for ratio in ratios:
        plans[f"groups {ratio:g}"] = grouped_plan(encoder, ratio)
        plans[f"narrow {ratio:g}"] = narrow_plan(encoder, ratio)
    for number in numbers:
        plans[f"G = {number}"] = plan_of_one_number(encoder, number)
        plans[f"G = {number}, alike"] = plan_of_one_number(encoder, number, alike=True)
    models = {"dense": dense}
    for name, chosen in plans.items():
        models[name] = copy.deepcopy(dense)
        apply_plan(find_encoder(models[name]), chosen)
    return models


def grouped_plan(encoder: Encoder, ratio: float) -> PruningPlan:
    """Run the paper's recipe on importances that are random: its shapes are real, its choices are not."""
    generator = torch.Generator().manual_seed(0)
    fisher = {
        key: torch.rand(linear.weight.T.shape, generator=generator).to(linear.weight.device)
        for key, linear in encoder.linears()
    }
    return make_plan(encoder, Calibration(fisher, [], 0), PruningConfig.from_preset("paper", pruning_ratio=ratio))


def plan_of_one_number(encoder: Encoder, number: int, alike: bool = False) -> PruningPlan:
    """Cut every matrix into so many groups of inputs and outputs that are drawn: nothing lies in order.

    Args:
        encoder: A dense encoder.
        number: G.
        alike: Whether the inputs of W2's groups are the outputs of W1's.

    Raises:
        ValueError: The number does not divide both sides of a matrix.
    """
    generator = torch.Generator().manual_seed(0)
    matrices: list[MatrixPlan] = []
    for (layer, kind), linear in encoder.linears():
        size = (linear.in_features, linear.out_features)
        if number not in allowed_groups(*size, number):
            raise ValueError(f"num_groups={number} does not divide both sides of a {size[0]} x {size[1]} matrix.")
        rows, columns = (torch.randperm(n, generator=generator).view(number, -1).sort().values.tolist() for n in size)
        inputs = matrices[-1].output_index if alike and kind == "W2" else tuple(map(tuple, rows))
        matrices.append(MatrixPlan(layer, kind, *size, inputs, tuple(map(tuple, columns))))
    return PruningPlan(encoder.model_type, tuple(matrices))


def narrow_plan(encoder: Encoder, ratio: float) -> PruningPlan:
    """Keep the same number of heads and neurons in every layer, the first ones, so that a ratio is met.

    This is the dense-but-narrower model of as many parameters: no grouping can be faster.
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

    matrices = [planned(layer, kind, linears[layer, kind]) for layer in range(len(encoder.layers)) for kind in MATRICES]
    return PruningPlan(encoder.model_type, tuple(matrices))


def _layers_name(model_type: str) -> str:
    return "n_layers" if model_type == "distilbert" else "num_hidden_layers"
