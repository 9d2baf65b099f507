"""``torch-pruning`` from PyPI: channels that depend on each other go together, wherever they lie.

Fang, Ma, Song, Mi, Wang: *DepGraph: Towards Any Structural Pruning*, CVPR 2023. Set up as its own example for BERT
does: whole heads and single channels, ranked over the whole model. Importance is its Taylor score, weight times
gradient over what goes together, from the calibration samples, in place of the example's magnitude, so that it knows as
much as the others do.

It knows no budget but a share of channels, so the share that leaves the wanted number of encoder weights is searched
for. Left alone it narrows the hidden states too, and with them embeddings and head, which saves weights that the budget
does not count. ``narrow=False`` keeps it inside the sublayers, where the others work.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import SUBLAYERS, Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.masks import kept_weights

#: Steps of the search for the share of channels: each halves what is left to search.
STEPS = 9


@dataclass(frozen=True)
class Gradients:
    """What it learns from calibration.

    Args:
        values: The gradients by all parameters, in order, summed over batches.
        example: One row of a batch, from which the dependences are traced.
    """

    values: list[Tensor]
    example: dict[str, Tensor]


def collect_gradients(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> Gradients:
    """Sum gradients up; leave none behind.

    Args:
        model: A fine-tuned model, in eval mode; its output has a ``loss``.
        batches: Labelled batches.
    """
    parameters = list(model.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        with torch.enable_grad():
            gradients = torch.autograd.grad(model(**batch).loss, parameters, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            total += 0 if gradient is None else gradient
    example = {name: value[:1] for name, value in batches[0].items() if name in ("input_ids", "attention_mask")}
    return Gradients(sums, example)


def prune_with_torch_pruning(model: PreTrainedModel, found: Gradients, ratio: float, narrow: bool = True) -> None:
    """Remove channels and heads.

    Args:
        model: A fine-tuned model.
        found: What calibration found of it.
        ratio: Share of the encoder's weights to remove.
        narrow: Whether the hidden states between the layers get narrower too.
    """
    target = (1 - ratio) * kept_weights(find_encoder(model))
    low, high = 0.0, 1.0
    best = (float("inf"), 0.5)
    for _ in range(STEPS):
        share = (low + high) / 2
        trial = copy.deepcopy(model)
        _prune(trial, found, share, narrow)
        left = kept_weights(find_encoder(trial))
        best = min(best, (abs(left - target), share))
        low, high = (share, high) if left > target else (low, share)
    _prune(model, found, best[1], narrow)


def _prune(model: PreTrainedModel, found: Gradients, share: float, narrow: bool) -> None:
    """Prune one model by one share of channels."""
    import torch_pruning

    encoder = find_encoder(model)
    for parameter, gradient in zip(model.parameters(), found.values, strict=True):
        parameter.grad = gradient.clone()
    heads = {
        encoder.matrix(layer, kind): encoder.model.config.num_attention_heads
        for layer in range(len(encoder.layers))
        for kind in ("Q", "K", "V")
    }
    pruner = torch_pruning.pruner.BasePruner(
        model,
        found.example,
        importance=torch_pruning.importance.TaylorImportance(),
        global_pruning=True,
        pruning_ratio=share,
        head_pruning_ratio=share,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=_ignored(model, encoder, narrow),
        output_transform=lambda output: output.logits.sum(),
    )
    pruner.step()
    model.zero_grad()


def _ignored(model: PreTrainedModel, encoder: Encoder, narrow: bool) -> list[nn.Module]:
    """List the layers whose outputs stay as they are: those outside the encoder's layers, at least."""
    matrices = [linear for _, linear in encoder.linears()]
    ignored: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in matrices]
    if not narrow:
        closing = [kinds[-1] for kinds in SUBLAYERS.values()]
        ignored += [linear for (_, kind), linear in encoder.linears() if kind in closing]
        ignored += [m for m in model.modules() if isinstance(m, nn.Embedding)]
    return ignored
