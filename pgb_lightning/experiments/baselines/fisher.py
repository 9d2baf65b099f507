"""Unstructured global pruning by Fisher information: mask the weights whose removal raises the loss least.

After LeCun, Denker, Solla: *Optimal Brain Damage*, NeurIPS 1989, with the diagonal of the empirical Fisher information
in place of the diagonal of the Hessian. The importance is the same as in PGB, without groups and compensation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.calibration.importance import encoder_importances
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.masks import mask_matrices

Fisher = Mapping[tuple[int, str], Tensor]


def collect_fisher(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> Fisher:
    """Collect the Fisher information of each matrix, (M, N).

    Args:
        model: A fine-tuned model in eval mode; its output has a ``loss``, the mean over samples.
        batches: Labeled batches.
    """
    return calibrate(find_encoder(model), batches, lambda batch: model(**batch).loss, max_tokens=0).fisher


def prune_by_fisher(model: PreTrainedModel, found: Fisher, ratio: float) -> None:
    """Mask the weights of least importance over all of the encoder's matrices.

    Args:
        model: A fine-tuned model; its matrices get masks.
        found: Fisher information of the model on the calibration samples.
        ratio: Fraction of the weights to mask.
    """
    encoder = find_encoder(model)
    importances = encoder_importances(encoder, found)
    everything = torch.cat([importance.flatten() for importance in importances.values()])
    kept = torch.zeros(len(everything), dtype=torch.bool)
    kept[everything.topk(round((1 - ratio) * len(everything))).indices] = True
    parts = torch.split_with_sizes(kept, [importance.numel() for importance in importances.values()])
    fractions = {key: float(part.double().mean()) for key, part in zip(importances, parts, strict=True)}
    mask_matrices(encoder, importances, fractions)
