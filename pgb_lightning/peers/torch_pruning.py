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
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.architectures import SUBLAYERS, Encoder, find_encoder
from pgb_lightning.peers.masks import kept_weights

#: Steps of the search for the share of channels: each halves what is left to search.
STEPS = 9


def prune_with_torch_pruning(
    model: PreTrainedModel, batches: Sequence[dict[str, Tensor]], ratio: float, narrow: bool = True
) -> None:
    """Remove channels and heads.

    Args:
        model: A fine-tuned model.
        batches: Labelled calibration batches.
        ratio: Share of the encoder's weights to remove.
        narrow: Whether the hidden states between the layers get narrower too.
    """
    encoder = find_encoder(model)
    gradients = _gradients(model, batches)
    target = (1 - ratio) * kept_weights(encoder)
    low, high = 0.0, 1.0
    best = (float("inf"), 0.5)
    for _ in range(STEPS):
        share = (low + high) / 2
        trial = copy.deepcopy(model)
        _prune(trial, gradients, batches[0], share, narrow)
        left = kept_weights(find_encoder(trial))
        best = min(best, (abs(left - target), share))
        low, high = (share, high) if left > target else (low, share)
    _prune(model, gradients, batches[0], best[1], narrow)


def _gradients(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Return the gradients by all parameters, summed over batches, and leave none behind."""
    model.zero_grad()
    for batch in batches:
        model(**batch).loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    model.zero_grad()
    return gradients


def _prune(
    model: PreTrainedModel, gradients: list[Tensor], batch: dict[str, Tensor], share: float, narrow: bool
) -> None:
    """Prune one model by one share of channels."""
    import torch_pruning

    encoder = find_encoder(model)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    heads = {
        encoder.matrix(layer, kind): encoder.model.config.num_attention_heads
        for layer in range(len(encoder.layers))
        for kind in ("Q", "K", "V")
    }
    example = {name: value[:1] for name, value in batch.items() if "label" not in name}
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
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
