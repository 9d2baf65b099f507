"""Prune heads and neurons by the Fisher information of their masks, and rescale the remaining ones.

After Kwon, Kim, Mahoney, Hassoun, Keutzer, Gholami: *A Fast Post-Training Pruning Framework for Transformers*, NeurIPS
2022. Every head and neuron has a mask with the value 1. There are three steps, all based on one pass over the
calibration samples:

1. *Search.* With a diagonal Fisher matrix, the loss increases by half the sum of the pruned masks' Fisher information.
   For every number of heads, the budget determines the number of neurons. The most important heads and neurons are
   kept, and the number of heads with the smallest increase is chosen.
2. *Rearrangement.* Within a layer, the off-diagonal entries of the Fisher matrix are taken into account: the number of
   pruned units stays the same, but units are exchanged greedily where the layer's block of the matrix favors it.
3. *Tuning.* Layer by layer, the remaining masks are scaled by least squares so that the sublayer's output matches that
   of the dense model.

Differences from the original: the budget is in parameters, as for all other methods here, not FLOPs or latency;
gradients are those of single samples, not sums over batches; least squares is solved with a ridge, not by damped LSMR.
The pruned heads and neurons are then removed from the model in the same way as in PGB, so that sizes are comparable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS, Sublayer, sublayer_of
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.mask_gradients import MaskGradients
from pgb_lightning.experiments.baselines.mask_tuning import tune_masks
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.prediction.elimination import unit_indices
from pgb_lightning.surgery.apply import apply_plan

#: Kept units in ascending order, by (layer index, sublayer).
Kept = dict[tuple[int, Sublayer], Tensor]


def prune_heads_and_neurons(model: PreTrainedModel, found: MaskGradients, ratio: float, tune: bool = True) -> None:
    """Remove heads and neurons, and rescale the remaining ones.

    Args:
        model: A fine-tuned model.
        found: Mask gradients of the model on the calibration samples.
        ratio: Fraction of the encoder's weights to remove.
        tune: Whether to rescale the remaining heads and neurons.
    """
    encoder = find_encoder(model)
    plan = make_mask_plan(encoder, rearrange_all(found, search(encoder, found, ratio)))
    if tune:
        tune_masks(encoder, plan, found.inputs)
    else:
        apply_plan(encoder, plan)


def search(encoder: Encoder, found: MaskGradients, ratio: float) -> Kept:
    """Choose the heads and neurons to keep by the diagonal of the Fisher information matrix.

    Query heads that share keys and values are kept or removed together.
    """
    scores = {key: gradients.square().sum(0) for key, gradients in found.gradients.items()}
    sizes = {kind: linear.weight.numel() for (_, kind), linear in encoder.linears()}  # the same in all layers
    total = encoder.num_layers * sum(sizes.values())
    costs, flat = {}, {}
    for sublayer, kinds in encoder.sublayers.items():
        costs[sublayer] = sum(sizes[kind] for kind in kinds) // len(scores[0, sublayer])
        flat[sublayer] = torch.cat([scores[layer, sublayer] for layer in range(encoder.num_layers)])
    heads, neurons = (flat[sublayer].sort(descending=True).values for sublayer in SUBLAYERS)
    lost_heads, lost_neurons = _lost_importance(heads), _lost_importance(neurons)
    numbers = torch.arange(len(heads) + 1)
    room = ((1 - ratio) * total - numbers * costs["attention"]) / costs["ffn"]
    numbers, room = numbers[room >= 0], room[room >= 0].floor().long().clamp(max=len(neurons))
    best = int((lost_heads[numbers] + lost_neurons[room]).argmin())
    counts = {"attention": int(numbers[best]), "ffn": int(room[best])}
    kept: Kept = {}
    for sublayer in SUBLAYERS:
        mask = torch.zeros(len(flat[sublayer]), dtype=torch.bool)
        mask[flat[sublayer].topk(counts[sublayer]).indices] = True
        for layer, part in enumerate(mask.chunk(encoder.num_layers)):
            kept[layer, sublayer] = part.nonzero().flatten()
    return kept


def rearrange_all(found: MaskGradients, kept: Kept) -> Kept:
    """Exchange units within each sublayer according to its block of the Fisher information matrix."""
    return {key: rearrange(found.gradients[key], len(units)) for key, units in kept.items()}


def rearrange(gradients: Tensor, count: int) -> Tensor:
    """Choose the units to keep so that Σ over samples of (sum of the pruned units' gradients)² is small.

    The search is greedy. It starts with the least important units as the pruned set. Each other unit, in ascending
    order of importance, is added to the set, and the unit whose removal reduces the sum most is taken out again.

    Args:
        gradients: Gradient of each sample's loss with respect to each mask, of shape (samples, units).
        count: Number of units to keep.

    Returns:
        The units to keep, in ascending order.
    """
    fisher = gradients.T @ gradients
    order = fisher.diagonal().argsort(stable=True)
    pruned = torch.zeros(len(order), dtype=torch.bool)
    pruned[order[: len(order) - count]] = True
    coupling = fisher[:, pruned].sum(1)
    for unit in order[len(order) - count :] if pruned.any() else ():
        pruned[unit] = True
        coupling += fisher[:, unit]
        saved = 2 * coupling - fisher.diagonal()
        worst = saved.masked_fill(~pruned, -torch.inf).argmax()
        pruned[worst] = False
        coupling -= fisher[:, worst]
    return (~pruned).nonzero().flatten()


def make_mask_plan(encoder: Encoder, kept: Kept) -> PruningPlan:
    """Make the plan that keeps the given heads and neurons."""
    matrices: list[MatrixPlan] = []
    for (layer, kind), linear in encoder.linears():
        sublayer = sublayer_of(kind)
        units = kept[layer, sublayer]
        closes = kind == encoder.sublayers[sublayer][-1]
        rows, columns = linear.in_features, linear.out_features
        # Where query heads share keys and values, K and V have fewer features of a unit than Q and O.
        total = encoder.inner_size(sublayer) // (encoder.head_group if sublayer == "attention" else 1)
        inside = unit_indices(units, (rows if closes else columns) // total).tolist()
        sides = (inside, list(range(columns))) if closes else (list(range(rows)), inside)
        read, written = ((tuple(side),) if inside else () for side in sides)
        matrices.append(MatrixPlan(layer, kind, rows, columns, read, written))
    return PruningPlan(encoder.model_type, tuple(matrices))


def _lost_importance(scores: Tensor) -> Tensor:
    """Return the sum of the scores that are lost if the first 0, 1, 2, ... of the descending scores are kept."""
    return scores.sum() - torch.cat([scores.new_zeros(1), scores.cumsum(0)])
