"""Check that a layer with some heads removed computes the same as the full layer does for the remaining heads."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pgb_lightning.calibration.same_layers import relative_difference, rounding_tolerance
from pgb_lightning.compensation.streams import Stream
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.surgery.folding import Hidden


def check_heads(encoder: Encoder, layer: int, original: nn.Module, features: Hidden, stream: Stream) -> bool:
    """Check that heads can be removed as the family declares, before any weight is refitted.

    The outputs must equal those of the full layer with the outputs of the removed heads set to zero. Otherwise a part
    of the layer still uses the dense model's number of heads, and mixes the features of the remaining heads.

    Args:
        encoder: The encoder, in which the layer is pruned already.
        layer: Layer index.
        original: A copy of the layer before pruning.
        features: The features of the heads that are kept; ``None`` if all are.
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
        f"Layer {layer} of the encoder at {encoder.where} {problem}. The Family of {encoder.model_type!r} does not "
        "list everything that depends on the heads: set head_counts, head_widths or followers (docs/extending.md)."
    )
