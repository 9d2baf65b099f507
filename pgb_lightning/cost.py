"""The cost of an encoder: parameters and FLOPs, counted from its modules."""

from __future__ import annotations

from dataclasses import dataclass

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import sublayer_of
from pgb_lightning.layers.matrix import as_matrix


@dataclass(frozen=True)
class Cost:
    """The cost of an encoder.

    Args:
        parameters: Weights of the matrices, each counted once. Biases, LayerNorms, embeddings and heads are not
            counted, as in the paper.
        flops: Floating-point operations of one sequence through those matrices and through attention; a multiply-add
            counts as two.
    """

    parameters: int
    flops: int


def encoder_cost(encoder: Encoder, length: int = 128) -> Cost:
    """Count the parameters and FLOPs of an encoder, dense or pruned.

    Args:
        encoder: The encoder.
        length: Tokens of the sequence for which FLOPs are counted.

    Raises:
        TypeError: If another library has replaced a layer by one whose weights cannot be counted.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from pgb_lightning.encoders import find_encoder
        >>> encoder_cost(find_encoder(BertModel(BertConfig(num_hidden_layers=2)))).parameters
        14155776
    """
    parameters = flops = 0
    for layer in range(encoder.num_layers):
        kept = {kind: _kept_weights(encoder, layer, kind) for kind in encoder.matrices}
        parameters += sum(kept.values())
        once = 2 * length * sum(kept.values())
        last = encoder.sublayers["attention"][-1]
        if kept[last]:
            # Scores Q Kᵀ and their product with V: two products of length x length x width.
            once += 2 * 2 * length**2 * as_matrix(encoder.matrix(layer, last)).in_features
        flops += once * encoder.num_runs(layer)
    return Cost(parameters, flops)


def dense_cost(encoder: Encoder, length: int = 128) -> Cost:
    """Count the parameters and FLOPs of an encoder before any pruning, from its configuration.

    Args:
        encoder: The encoder, dense or pruned.
        length: Tokens of the sequence for which FLOPs are counted.
    """
    sizes = (encoder.matrix_size(kind, encoder.inner_size(sublayer_of(kind))) for kind in encoder.matrices)
    weights = sum(rows * columns for rows, columns in sizes)
    flops = 2 * length * weights + 2 * 2 * length**2 * encoder.inner_size("attention")
    return Cost(weights * encoder.num_layers, flops * len(encoder.order))


def _kept_weights(encoder: Encoder, layer: int, kind: str) -> int:
    """Return the number of kept weights of a matrix."""
    module = encoder.find_matrix(layer, kind)
    return 0 if module is None else as_matrix(module).kept_weights().numel()
