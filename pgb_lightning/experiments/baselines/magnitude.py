"""Unstructured global magnitude pruning: mask the smallest weights of all matrices.

After Han, Pool, Tran, Dally: *Learning both Weights and Connections for Efficient Neural Networks*, NeurIPS 2015, with
``torch.nn.utils.prune``.
"""

from __future__ import annotations

from torch.nn.utils import prune
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder


def prune_by_magnitude(model: PreTrainedModel, found: None, ratio: float) -> None:
    """Mask the weights of smallest magnitude over all of the encoder's matrices.

    Args:
        model: A fine-tuned model; its matrices get masks.
        found: Unused; this method needs no calibration.
        ratio: Fraction of the weights to mask.
    """
    weights = [(linear, "weight") for linear, _ in find_encoder(model).hook_points()]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=ratio)
