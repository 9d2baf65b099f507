"""Check an encoder: whether it is dense, whether a plan fits it, and whether it matches a plan."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from pgb_lightning.encoders.base import MATRICES, SUBLAYERS, Encoder
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.surgery.folding import fold_plan
from pgb_lightning.surgery.structure import Structure


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
            f"The plan has model_type={plan.model_type!r}, but the encoder's model_type is {encoder.model_type!r}. Use "
            "a plan that was made for this model."
        )
    if plan.num_layers != len(encoder.layers):
        raise ValueError(
            f"The plan has {plan.num_layers} layers, but the encoder has {len(encoder.layers)}. Use a plan that was "
            "made for this model."
        )
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
    try:
        structure = Structure.of(encoder)
    except TypeError:  # another library has replaced a layer
        return False
    return any(
        structure == Structure.from_plan(encoder, plan, fold_orders)
        and all(
            _has_index(encoder, matrix)
            for _, _, folded in fold_plan(plan, encoder.attention_unit, fold_orders)
            for matrix in folded.matrices.values()
        )
        for fold_orders in (True, False)
    )


def _has_index(encoder: Encoder, matrix: MatrixPlan) -> bool:
    """Return whether the blocks of a matrix, if it has any, are at the positions of a plan."""
    module = encoder.find_matrix(matrix.layer, matrix.kind)
    if module is None or not matrix.input_index or not matrix.output_index:
        return True
    rows, columns = as_matrix(module).index()
    planned = (matrix.input_index, matrix.output_index)
    return planned == (tuple(map(tuple, rows.tolist())), tuple(map(tuple, columns.tolist())))
