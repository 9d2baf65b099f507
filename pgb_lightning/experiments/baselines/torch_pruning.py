"""The PyPI package ``torch-pruning``, which removes dependent channels of all layers together.

Fang, Ma, Song, Mi, Wang: *DepGraph: Towards Any Structural Pruning*, CVPR 2023. The setup follows the package's example
for BERT: whole heads and single channels, ranked over the whole model. The importance is the package's Taylor score,
weight times gradient summed over dependent weights. It is computed on the calibration samples and replaces the
example's magnitude score, so that the method has the same information as the others.

The package takes a fraction of channels, not a budget, so the fraction that leaves the target number of encoder weights
is found by bisection. By default it also narrows the hidden states, and with them the embeddings and the head, which
saves weights that the budget does not count. ``narrow=False`` restricts it to the insides of the sublayers, as for the
other methods.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.masks import kept_weights
from pgb_lightning.surgery.heads import follow_heads

#: Steps of the bisection for the fraction of channels.
STEPS = 9

#: The matrices that are computed for each head.
HEADS = SUBLAYERS["attention"][:-1]


@dataclass(frozen=True)
class Gradients:
    """Gradients on the calibration samples.

    Args:
        values: Gradients with respect to all parameters, in order, summed over batches.
        example: One row of a batch, used to trace the dependencies.
    """

    values: list[Tensor]
    example: dict[str, Tensor]


def collect_gradients(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> Gradients:
    """Sum the gradients over batches, without changing the ``grad`` of the parameters.

    Args:
        model: A fine-tuned model in eval mode; its output has a ``loss``.
        batches: Labeled batches.

    Raises:
        ValueError: If the package cannot prune encoders of this family.
    """
    check_supported(find_encoder(model))
    parameters = list(model.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        with torch.enable_grad():
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            gradients = iter(torch.autograd.grad(model(**batch).loss, trained, allow_unused=True))
        for parameter, total in zip(parameters, sums, strict=True):
            gradient = next(gradients) if parameter.requires_grad else None
            total += 0 if gradient is None else gradient
    example = {name: value[:1] for name, value in batches[0].items() if name in ("input_ids", "attention_mask")}
    return Gradients(sums, example)


def prune_with_torch_pruning(model: PreTrainedModel, found: Gradients, ratio: float, narrow: bool = True) -> None:
    """Remove channels and heads.

    Args:
        model: A fine-tuned model.
        found: Gradients of the model on the calibration samples.
        ratio: Fraction of the encoder's weights to remove.
        narrow: Whether to narrow the hidden states between the layers as well.

    Raises:
        ValueError: If the package leaves a model that cannot run.
    """
    target = (1 - ratio) * kept_weights(find_encoder(model))
    low, high = 0.0, 1.0
    best = (float("inf"), 0.5)
    for _ in range(STEPS):
        fraction = (low + high) / 2
        trial = copy.deepcopy(model)
        _prune(trial, found, fraction, narrow)
        left = kept_weights(find_encoder(trial))
        best = min(best, (abs(left - target), fraction))
        low, high = (fraction, high) if left > target else (low, fraction)
    _prune(model, found, best[1], narrow)


def check_supported(encoder: Encoder) -> None:
    """Check that Q, K and V are separate and have the same number of heads, which the package reads from these layers.

    Raises:
        ValueError: If a linear layer holds several matrices, query heads share keys and values, other weights of a
            layer follow its heads, or a layer runs several times.
    """
    family = encoder.family
    reasons = {
        "one linear layer holds several matrices": len(family.linears) < len(family.paths),
        "query heads share keys and values": encoder.queries_per_key > 1,
        "other weights follow the heads": bool(family.followers),
        "a layer runs several times": len(encoder.order) > encoder.num_layers,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"model_type={encoder.model_type!r} is not supported by the baseline torch-pruning: {reason}. Use "
                "another baseline."
            )


def _prune(model: PreTrainedModel, found: Gradients, fraction: float, narrow: bool) -> None:
    """Prune one model by one fraction of channels."""
    import torch_pruning

    encoder = find_encoder(model)
    heads = {encoder.matrix(layer, kind): encoder.num_heads for layer in range(encoder.num_layers) for kind in HEADS}
    for parameter, gradient in zip(model.parameters(), found.values, strict=True):
        parameter.grad = gradient.clone()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        found.example,
        importance=torch_pruning.importance.TaylorImportance(),
        global_pruning=True,
        pruning_ratio=fraction,
        head_pruning_ratio=fraction,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=_ignored(model, encoder, narrow),
        output_transform=lambda output: output.logits.sum(),
    )
    pruner.step()
    for layer in range(encoder.num_layers):
        follow_heads(encoder, layer, None)  # the package does not know where a layer stores its number of heads
    model.zero_grad()
    try:
        with torch.no_grad():
            model(**found.example)
    except RuntimeError as error:
        raise ValueError(
            f"model_type={encoder.model_type!r} is not supported by the baseline torch-pruning: the result cannot run "
            f"({error}). Use torch-pruning-inside, which leaves the hidden states as they are, or another baseline."
        ) from error


def _ignored(model: PreTrainedModel, encoder: Encoder, narrow: bool) -> list[nn.Module]:
    """List the layers whose outputs keep their width: at least those outside the encoder's layers."""
    matrices = [linear for _, linear in encoder.linears()]
    ignored: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in matrices]
    if not narrow:
        closing = [kinds[-1] for kinds in encoder.sublayers.values()]
        ignored += [linear for (_, kind), linear in encoder.linears() if kind in closing]
        ignored += [m for m in model.modules() if isinstance(m, nn.Embedding)]
    return ignored
