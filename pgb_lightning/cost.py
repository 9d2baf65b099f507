"""What an encoder costs: parameters and FLOPs, counted from its modules."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pgb_lightning.encoders.base import MATRICES, Encoder
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear


@dataclass(frozen=True)
class Cost:
    """Cost of an encoder.

    Args:
        parameters: Weights of the six matrix kinds; biases, LayerNorms, embeddings and heads are not counted,
            as in the paper.
        flops: Floating-point operations of one sequence through those matrices and through attention, a
            multiply-add counted as two.
    """

    parameters: int
    flops: int


def encoder_cost(encoder: Encoder, length: int = 128) -> Cost:
    """Count what an encoder, dense or grouped, costs.

    Args:
        encoder: The encoder.
        length: Tokens of the sequence for which FLOPs are counted.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from pgb_lightning.encoders.base import find_encoder
        >>> encoder_cost(find_encoder(BertModel(BertConfig(num_hidden_layers=2)))).parameters
        14155776
    """
    parameters = flops = 0
    for number in range(len(encoder.layers)):
        kept = {kind: _weights(encoder, number, kind) for kind in MATRICES}
        parameters += sum(kept.values())
        flops += 2 * length * sum(kept.values())
        if kept["O"]:
            # Scores Q Kᵀ and their product with V: two products of length x length x width.
            flops += 2 * 2 * length**2 * int(encoder.matrix(number, "V").out_features)  # type: ignore[arg-type]
    return Cost(parameters, flops)


def _weights(encoder: Encoder, layer: int, kind: str) -> int:
    """Return the number of weights left of a matrix."""
    module = encoder.find_matrix(layer, kind)
    if isinstance(module, (nn.Linear, GroupedLinear)):
        return module.weight.numel()
    if module is None or isinstance(module, ConstantLinear):
        return 0
    raise TypeError(f"layer {layer} {kind} is a {type(module).__name__}, whose weights cannot be counted.")
