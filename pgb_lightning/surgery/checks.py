"""Does a plan fit an encoder, and is the encoder dense?"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from pgb_lightning.encoders.base import MATRICES, SUBLAYERS, Encoder
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.surgery.folding import fold


def check_plan(encoder: Encoder, plan: PruningPlan) -> None:
    """Require that a plan fits a dense encoder.

    Raises:
        ValueError: It does not; the message names the first mismatch.
    """
    check_dense(encoder)
    if plan.model_type != encoder.model_type:
        raise ValueError(
            f"the plan was made for a {plan.model_type!r} encoder, but this one is {encoder.model_type!r}."
        )
    if plan.num_layers != len(encoder.layers):
        raise ValueError(f"the plan has {plan.num_layers} layers, but the encoder has {len(encoder.layers)}.")
    for (layer, kind), linear in encoder.linears():
        matrix = plan.matrix(layer, kind)
        if (matrix.rows, matrix.columns) != (linear.in_features, linear.out_features):
            raise ValueError(
                f"{matrix}: the plan is for {matrix.rows} x {matrix.columns}, but the encoder's matrix is "
                f"{linear.in_features} x {linear.out_features}."
            )


def check_dense(encoder: Encoder) -> None:
    """Require an encoder that nothing has been pruned from, with plain linear layers everywhere.

    Raises:
        ValueError: It is grouped already, or another library has exchanged its layers.
    """
    if is_pruned(encoder):
        raise ValueError(_already_grouped(encoder))
    for layer in range(len(encoder.layers)):
        for kind in MATRICES:
            module = encoder.matrix(layer, kind)
            if type(module) is not nn.Linear or parametrize.is_parametrized(module):
                found = f"{type(module).__module__}.{type(module).__name__}"  # others call theirs Linear, too
                raise ValueError(
                    f"layer {layer} {kind} of the encoder at {encoder.name or 'the root'!r} is a {found}, not a plain "
                    "nn.Linear; merge adapters and undo quantization first."
                )
    for module in encoder.model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            raise ValueError(
                f"the encoder at {encoder.name or 'the root'!r} has "
                f"chunk_size_feed_forward={module.chunk_size_feed_forward}, so that its feed-forward layers see parts "
                "of a sequence; build it with chunk_size_feed_forward=0, which changes no output."
            )


def matches(encoder: Encoder, plan: PruningPlan) -> bool:
    """Tell whether an encoder is what a plan makes of it (or made of it in releases that did not fold)."""
    if plan.model_type != encoder.model_type or plan.num_layers != len(encoder.layers):
        return False
    folded = [
        matrix
        for layer in range(plan.num_layers)
        for sublayer, kinds in SUBLAYERS.items()
        for matrix in fold([plan.matrix(layer, k) for k in kinds], sublayer, encoder.attention_unit).matrices.values()
    ]
    return any(
        all(_is_as_planned(encoder.find_matrix(m.layer, m.kind), m) for m in ms) for ms in (folded, plan.matrices)
    )


def _is_as_planned(module: nn.Module | None, matrix: MatrixPlan) -> bool:
    if matrix.input_index is None:
        return isinstance(module, nn.Linear) and module.weight.shape == (matrix.columns, matrix.rows)
    if matrix.num_groups == 0:
        return module is None or isinstance(module, ConstantLinear)
    return isinstance(module, GroupedLinear) and (
        [list(block) for block in matrix.input_index] == module.input_index.tolist()
        and [list(block) for block in matrix.output_index or ()] == module.output_index.tolist()
    )


def is_pruned(encoder: Encoder) -> bool:
    """Tell whether any matrix of an encoder was pruned."""
    if any(isinstance(m, (GroupedLinear, ConstantLinear, DroppedCore)) for m in encoder.model.modules()):
        return True
    openings = [(layer, kinds[0], name) for layer in range(len(encoder.layers)) for name, kinds in SUBLAYERS.items()]
    found = [(encoder.find_matrix(layer, kind), name) for layer, kind, name in openings]
    return any(isinstance(m, nn.Linear) and m.out_features < encoder.inner_size(name) for m, name in found)


def _already_grouped(encoder: Encoder) -> str:
    return (
        f"the encoder at {encoder.name or 'the root'!r} is grouped already and cannot be pruned again. To go on "
        "re-finetuning it, drop the pruning step (or resume with ckpt_path); to prune it differently, start "
        "from the dense fine-tuned model."
    )
