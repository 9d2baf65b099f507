"""Check that a layer without some of its heads computes what the whole layer does for the others."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pgb_lightning.calibration.same_layers import relative_difference, rounding_tolerance
from pgb_lightning.compensation.streams import Stream
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.surgery.folding import Hidden


def check_heads(encoder: Encoder, layer: int, original: nn.Module, features: Hidden, stream: Stream) -> bool:
    """Require that heads can be removed as the family says, before any weight is refitted.

    The outputs must be those of the whole layer with the outputs of the removed heads set to zero. Otherwise something
    in the layer still counts the heads of the dense model, and mixes the features of those that are left.

    Args:
        encoder: The encoder, in which the layer is pruned already.
        layer: Layer index.
        original: A copy of the layer before pruning.
        features: The features of heads that are left; ``None`` if all are.
        stream: Hidden states of a batch.

    Returns:
        Whether there was anything to check: a layer with fewer heads and no blocks.

    Raises:
        ValueError: If the outputs differ, or the layer does not run.
    """
    *_, closing = encoder.sublayers["attention"]
    pruned = [encoder.find_matrix(layer, kind) for kind in encoder.sublayers["attention"]]
    if features is None or not all(isinstance(matrix, nn.Linear) for matrix in pruned):
        return False
    zeroed = copy.deepcopy(original)
    last = encoder.matrix_in(zeroed, closing)
    assert isinstance(last, nn.Linear)
    removed = torch.ones(last.in_features, dtype=torch.bool, device=last.weight.device)
    removed[list(features)] = False
    last.weight[:, removed] = 0
    expected = stream.run(encoder, zeroed, "attention", stream.dense)
    try:
        found = stream.run(encoder, encoder.layers[layer], "attention", stream.dense)
    except (IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(_message(encoder, layer, f"does not run without some of its heads: {error}")) from error
    difference = relative_difference(stream.real(found), stream.real(expected))
    if not difference <= rounding_tolerance(expected.dtype):
        raise ValueError(
            _message(encoder, layer, f"mixes its heads if some are removed: outputs differ by {difference:.2%}")
        )
    return True


def _message(encoder: Encoder, layer: int, problem: str) -> str:
    return (
        f"Layer {layer} of the encoder at {encoder.where} {problem}. The Family of {encoder.model_type!r} does not say "
        "all that depends on the heads: set head_counts, head_widths or followers (docs/extending.md)."
    )
