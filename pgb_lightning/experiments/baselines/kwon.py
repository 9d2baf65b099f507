"""Heads and neurons by the Fisher information of their masks, and masks tuned to make up for what is gone.

After Kwon, Kim, Mahoney, Hassoun, Keutzer, Gholami: *A Fast Post-Training Pruning Framework for Transformers*, NeurIPS
2022. Every head and neuron has a mask, 1 while it is whole. Three steps, all from one pass over calibration samples:

1. *Search.* With a diagonal Fisher the loss rises by half the sum of the pruned masks' Fisher information. For every
   number of heads the budget leaves a number of neurons; the most important of both are kept, and the number of heads
   with the least rise is best.
2. *Rearrangement.* Within a layer the Fisher's off-diagonals count too: as many units go as before, but others if the
   block says so, found greedily.
3. *Tuning.* Layer by layer the masks that are left are scaled so that the sublayer gives what the dense model's gave,
   in least squares.

Theirs budgets FLOPs or latency; here parameters are budgeted, as with all others. They add up gradients of batches,
here they are of single samples; they solve least squares by LSMR with damping, here by a ridge. The pruned heads and
neurons are then cut out of the model as PGB does it, so that sizes count alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import SUBLAYERS, Encoder, Sublayer
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.mask_gradients import MaskGradients
from pgb_lightning.experiments.baselines.mask_tuning import tune_masks
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.prediction.elimination import unit_indices
from pgb_lightning.surgery.apply import apply_plan

#: Units that are kept, ascending, by (layer number, sublayer).
Kept = dict[tuple[int, Sublayer], Tensor]


def prune_heads_and_neurons(model: PreTrainedModel, found: MaskGradients, ratio: float, tune: bool = True) -> None:
    """Remove heads and neurons, and scale those that are left.

    Args:
        model: A fine-tuned model.
        found: What calibration found of it.
        ratio: Share of the encoder's weights to remove.
        tune: Whether to scale.
    """
    encoder = find_encoder(model)
    plan = plan_of(encoder, rearranged(found, search(encoder, found, ratio)))
    if tune:
        tune_masks(encoder, plan, found.inputs)
    else:
        apply_plan(encoder, plan)


def search(encoder: Encoder, found: MaskGradients, ratio: float) -> Kept:
    """Choose heads and neurons by the diagonal of the Fisher information."""
    scores = {key: gradients.square().sum(0) for key, gradients in found.gradients.items()}
    sizes = {kind: linear.weight.numel() for (_, kind), linear in encoder.linears()}  # alike in all layers
    total = len(encoder.layers) * sum(sizes.values())
    costs, flat = {}, {}
    for sublayer, kinds in SUBLAYERS.items():
        costs[sublayer] = sum(sizes[kind] for kind in kinds) // len(scores[0, sublayer])
        flat[sublayer] = torch.cat([scores[layer, sublayer] for layer in range(len(encoder.layers))])
    heads, neurons = (flat[sublayer].sort(descending=True).values for sublayer in SUBLAYERS)
    lost_heads, lost_neurons = _lost(heads), _lost(neurons)
    numbers = torch.arange(len(heads) + 1)
    room = ((1 - ratio) * total - numbers * costs["attention"]) / costs["ffn"]
    numbers, room = numbers[room >= 0], room[room >= 0].floor().long().clamp(max=len(neurons))
    best = int((lost_heads[numbers] + lost_neurons[room]).argmin())
    counts = {"attention": int(numbers[best]), "ffn": int(room[best])}
    kept: Kept = {}
    for sublayer in SUBLAYERS:
        mask = torch.zeros(len(flat[sublayer]), dtype=torch.bool)
        mask[flat[sublayer].topk(counts[sublayer]).indices] = True
        for layer, part in enumerate(mask.chunk(len(encoder.layers))):
            kept[layer, sublayer] = part.nonzero().flatten()
    return kept


def rearranged(found: MaskGradients, kept: Kept) -> Kept:
    """Exchange units within each sublayer by its block of the Fisher information."""
    return {key: rearrange(found.gradients[key], len(units)) for key, units in kept.items()}


def rearrange(gradients: Tensor, count: int) -> Tensor:
    """Choose the units to keep so that Σ over samples of (the pruned units' summed gradient)² is small.

    The least important units are pruned first. Then each of the others, the less important first, joins them, and
    whichever is the most harmful in that company is kept instead.

    Args:
        gradients: Gradient of each sample's loss by each mask, (samples, units).
        count: Units to keep.

    Returns:
        The units to keep, ascending.
    """
    fisher = gradients.T @ gradients
    order = fisher.diagonal().argsort(stable=True)
    pruned = torch.zeros(len(order), dtype=torch.bool)
    pruned[order[: len(order) - count]] = True
    reach = fisher[:, pruned].sum(1)
    for unit in order[len(order) - count :] if pruned.any() else ():
        pruned[unit] = True
        reach += fisher[:, unit]
        saved = 2 * reach - fisher.diagonal()
        worst = saved.masked_fill(~pruned, -torch.inf).argmax()
        pruned[worst] = False
        reach -= fisher[:, worst]
    return (~pruned).nonzero().flatten()


def plan_of(encoder: Encoder, kept: Kept) -> PruningPlan:
    """Say in a plan which heads and neurons are kept."""
    matrices: list[MatrixPlan] = []
    for (layer, kind), linear in encoder.linears():
        sublayer: Sublayer = "attention" if kind in SUBLAYERS["attention"] else "ffn"
        units = kept[layer, sublayer]
        inside = unit_indices(units, encoder.head_size if sublayer == "attention" else 1).tolist()
        closes = kind == SUBLAYERS[sublayer][-1]
        rows, columns = linear.in_features, linear.out_features
        sides = (inside, list(range(columns))) if closes else (list(range(rows)), inside)
        read, written = ((tuple(side),) if inside else () for side in sides)
        matrices.append(MatrixPlan(layer, kind, rows, columns, read, written))
    return PruningPlan(encoder.model_type, tuple(matrices))


def _lost(scores: Tensor) -> Tensor:
    """Return the sum of what is lost when the first 0, 1, 2, ... of some descending scores are kept."""
    return scores.sum() - torch.cat([scores.new_zeros(1), scores.cumsum(0)])
