"""Check an encoder: whether it is dense, whether a plan fits it, and whether it matches a plan."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from pgb_lightning.encoders.base import MATRICES, SUBLAYERS, Encoder
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.surgery.folding import fold


def check_dense(encoder: Encoder) -> None:
    """Require an encoder from which nothing has been pruned, with plain linear layers everywhere.

    Raises:
        ValueError: If it is pruned already, or another library has replaced its layers.
    """
    if is_pruned(encoder):
        raise ValueError(
            f"The encoder at {encoder.where} is already pruned. To continue re-finetuning, skip the pruning step or "
            "resume with ckpt_path. To prune it differently, start from the dense fine-tuned model."
        )
    for layer in range(len(encoder.layers)):
        for kind in MATRICES:
            module = encoder.matrix(layer, kind)
            if type(module) is not nn.Linear or parametrize.is_parametrized(module):
                found = f"{type(module).__module__}.{type(module).__name__}"  # other libraries use the name Linear, too
                raise ValueError(
                    f"Layer {layer} {kind} of the encoder at {encoder.where} is a {found}, but must be a plain "
                    "nn.Linear. Merge adapters and undo quantization first."
                )
    for module in encoder.model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            raise ValueError(
                f"The encoder at {encoder.where} has chunk_size_feed_forward={module.chunk_size_feed_forward}, which "
                "splits sequences in its feed-forward layers. Set chunk_size_feed_forward=0; the outputs are the same."
            )


def check_plan(encoder: Encoder, plan: PruningPlan) -> None:
    """Require that a plan fits a dense encoder.

    Raises:
        ValueError: If it does not; the message names the first mismatch.
    """
    check_dense(encoder)
    if plan.model_type != encoder.model_type:
        raise ValueError(
            f"The plan has model_type={plan.model_type!r}, but the encoder's model_type is {encoder.model_type!r}."
        )
    if plan.num_layers != len(encoder.layers):
        raise ValueError(f"The plan has {plan.num_layers} layers, but the encoder has {len(encoder.layers)}.")
    for (layer, kind), linear in encoder.linears():
        matrix = plan.matrix(layer, kind)
        if (matrix.rows, matrix.columns) != (linear.in_features, linear.out_features):
            raise ValueError(
                f"Layer {layer} {kind}: the plan's matrix is {matrix.rows} x {matrix.columns}, but the encoder's is "
                f"{linear.in_features} x {linear.out_features}."
            )


def is_pruned(encoder: Encoder) -> bool:
    """Return whether any matrix of an encoder was pruned."""
    if any(isinstance(m, (GroupedLinear, ConstantLinear, DroppedCore)) for m in encoder.model.modules()):
        return True
    for layer in range(len(encoder.layers)):
        for sublayer, kinds in SUBLAYERS.items():
            opening = encoder.find_matrix(layer, kinds[0])
            if isinstance(opening, nn.Linear) and opening.out_features < encoder.inner_size(sublayer):
                return True
    return False


def matches(encoder: Encoder, plan: PruningPlan) -> bool:
    """Return whether an encoder is the result of a plan.

    Permutations may be folded or not, as in encoders pruned by earlier releases.
    """
    if plan.model_type != encoder.model_type or plan.num_layers != len(encoder.layers):
        return False
    folded = [
        matrix
        for layer in range(plan.num_layers)
        for sublayer, kinds in SUBLAYERS.items()
        for matrix in fold([plan.matrix(layer, k) for k in kinds], sublayer, encoder.attention_unit).matrices.values()
    ]
    return any(
        all(_is_as_planned(encoder.find_matrix(m.layer, m.kind), m) for m in matrices)
        for matrices in (folded, plan.matrices)
    )


def _is_as_planned(module: nn.Module | None, matrix: MatrixPlan) -> bool:
    if module is None:
        return matrix.num_groups == 0
    try:
        layer = as_matrix(module)
    except TypeError:
        return False
    if layer.block_shape != matrix.block_shape or (layer.in_features, layer.out_features) != (
        matrix.rows,
        matrix.columns,
    ):
        return False
    if matrix.input_index is None or matrix.output_index is None or matrix.num_groups == 0:
        return True
    rows, columns = layer.index()
    return (tuple(map(tuple, rows.tolist())), tuple(map(tuple, columns.tolist()))) == (
        matrix.input_index,
        matrix.output_index,
    )
