"""Unstructured global magnitude: the smallest weights of all matrices go, one by one.

The oldest way there is (Han, Pool, Tran, Dally: *Learning both Weights and Connections for Efficient Neural Networks*,
NeurIPS 2015), with PyTorch's own tool.
"""

from __future__ import annotations

from torch.nn.utils import prune
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder


def prune_by_magnitude(model: PreTrainedModel, found: None, ratio: float) -> None:
    """Mask the smallest weights of the encoder's matrices, taken together.

    Args:
        model: A fine-tuned model; its matrices get masks.
        found: It learns nothing from calibration.
        ratio: Share of the weights to mask.
    """
    weights = [(linear, "weight") for _, linear in find_encoder(model).linears()]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=ratio)
