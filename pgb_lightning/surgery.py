"""Surgery: put grouped layers where a plan says, and undo them in a dense twin."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from pgb_lightning.architectures import (
    MATRICES,
    SUBLAYERS,
    Encoder,
    Sublayer,
    find_encoders,
)
from pgb_lightning.chunks import feed_in_chunks
from pgb_lightning.folding import Hidden, fold
from pgb_lightning.linear import ConstantLinear, DroppedCore, GroupedLinear
from pgb_lightning.plan import MatrixPlan, PruningPlan

Model = TypeVar("Model", bound=PreTrainedModel)


def apply_plan(encoder: Encoder, plan: PruningPlan) -> None:
    """Carry out a plan on a dense encoder, in place.

    Each block is cut out of the matrix and knows the places its inputs and outputs had, which is all that
    re-permutation needs (Section 3.3). The kept weights are the dense model's; compensation refits them.

    Args:
        encoder: A dense encoder; its layers change.
        plan: The plan.

    Raises:
        ValueError: The plan was made for another shape of encoder (the first mismatch is named), or the
            encoder is grouped already. Nothing has changed then.
    """
    check_plan(encoder, plan)
    for layer in range(plan.num_layers):
        prune_layer(encoder, plan, layer)


def prune_layer(encoder: Encoder, plan: PruningPlan, layer: int) -> dict[Sublayer, Hidden]:
    """Carry out a plan on one layer, in place; return what is left inside of each sublayer."""
    return {
        sublayer: prune_sublayer(encoder, layer, sublayer, [plan.matrix(layer, kind) for kind in kinds])
        for sublayer, kinds in SUBLAYERS.items()
    }


def prune_sublayer(encoder: Encoder, layer: int, sublayer: Sublayer, matrices: Sequence[MatrixPlan]) -> Hidden:
    """Carry out the plans of one sublayer's matrices, in place, with their permutations folded.

    Returns:
        Which of the dense sublayer's neurons, or features of heads, are left, in their new order.
    """
    folded = fold(matrices, sublayer, encoder.attention_unit)
    closing = SUBLAYERS[sublayer][-1]
    for kind, matrix in folded.matrices.items():
        module = encoder.matrix(layer, kind)
        assert isinstance(module, nn.Linear), f"layer {layer} {kind} is {type(module).__name__}"
        put(encoder, layer, kind, prune_linear(select(module, folded.hidden, kind == closing), matrix))
    if all(matrix.num_groups == 0 for matrix in matrices):
        drop_sublayer(encoder, layer, sublayer)
    if sublayer == "ffn":
        feed_in_chunks(encoder, layer)
    return folded.hidden


@torch.no_grad()
def select(linear: nn.Linear, features: Hidden, of_inputs: bool) -> nn.Linear:
    """Make a layer of some inputs or outputs of another, in the order given; ``None`` gives the layer itself."""
    if features is None:
        return linear
    index = torch.tensor(features, device=linear.weight.device)
    weight = linear.weight.index_select(int(of_inputs), index)
    bias = linear.bias if of_inputs or linear.bias is None else linear.bias[index]
    outputs, inputs = weight.shape
    selected = nn.Linear(inputs, outputs, bias is not None, device=weight.device, dtype=weight.dtype)
    selected.weight.copy_(weight)
    if bias is not None:
        selected.bias.copy_(bias)
    like(linear, selected)
    return selected


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
    if is_grouped(encoder):
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


def is_grouped(encoder: Encoder) -> bool:
    """Tell whether any matrix of an encoder was pruned."""
    if any(isinstance(m, (GroupedLinear, ConstantLinear, DroppedCore)) for m in encoder.model.modules()):
        return True
    openings = [(layer, kinds[0], name) for layer in range(len(encoder.layers)) for name, kinds in SUBLAYERS.items()]
    found = [(encoder.find_matrix(layer, kind), name) for layer, kind, name in openings]
    return any(isinstance(m, nn.Linear) and m.out_features < encoder.inside(name) for m, name in found)


@torch.no_grad()
def prune_linear(linear: nn.Linear, matrix: MatrixPlan) -> nn.Module:
    """Cut the blocks of a plan out of a dense layer.

    Args:
        linear: The dense layer; its ``weight`` is Wᵀ, (N, M).
        matrix: What becomes of it.

    Returns:
        The layer itself if it is kept whole, else a :class:`GroupedLinear` or :class:`ConstantLinear`.
    """
    if matrix.input_index is None or matrix.output_index is None:
        return linear
    placed: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    pruned: GroupedLinear | ConstantLinear
    if matrix.num_groups == 0:
        pruned = ConstantLinear(linear.in_features, linear.out_features, **placed)
    else:
        rows = torch.tensor(matrix.input_index, device=linear.weight.device)
        columns = torch.tensor(matrix.output_index, device=linear.weight.device)
        pruned = GroupedLinear(
            linear.in_features,
            linear.out_features,
            *(matrix.num_groups, rows.shape[1], columns.shape[1]),
            bias=linear.bias is not None,
            **placed,
        )
        pruned.input_index.copy_(rows)
        pruned.output_index.copy_(columns)
        pruned.weight.copy_(linear.weight.T[rows.unsqueeze(2), columns.unsqueeze(1)])
    if linear.bias is not None and pruned.bias is not None:
        pruned.bias.copy_(linear.bias)
    return like(linear, pruned)


def blank_layer(
    old: nn.Module, size: tuple[int, int], blocks: tuple[int, ...] | None, bias: bool = True
) -> nn.Linear | GroupedLinear | ConstantLinear:
    """Make a layer of some structure, with weights still to be loaded, in the place of another.

    Args:
        old: The layer whose place it takes; gives the device and type, the mode, and what is trained.
        size: M and N.
        blocks: G, m and n; ``()`` if the matrix is pruned whole, ``None`` if it is kept whole.
        bias: Whether there is a bias.

    Raises:
        ValueError: The blocks do not fit the matrix.
    """
    first = next(old.parameters())
    placed: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
    blank: nn.Linear | GroupedLinear | ConstantLinear
    if blocks is None:
        blank = nn.Linear(*size, bias=bias, **placed)
    elif not blocks:
        blank = ConstantLinear(*size, **placed)
    else:
        groups, block_in, block_out = blocks
        blank = GroupedLinear(*size, groups, block_in, block_out, bias=bias, **placed)
    like(old, blank)
    return blank


def drop_sublayer(encoder: Encoder, layer: int, sublayer: Sublayer) -> None:
    """Take out all of a sublayer but the constant that it adds, which is its closing matrix's bias."""
    architecture = encoder.architecture
    core = architecture.cores[sublayer]
    closing = architecture.paths[SUBLAYERS[sublayer][-1]]
    inside = closing.removeprefix(f"{core}.") if closing.startswith(f"{core}.") else None
    constant = encoder.layers[layer].get_submodule(closing) if inside else None
    dropped = DroppedCore(inside, constant, returns_tuple=sublayer == "attention")
    set_submodule(encoder.layers[layer], core, dropped)


def put(encoder: Encoder, layer: int, kind: str, module: nn.Module) -> None:
    """Put a module at the place of one matrix."""
    set_submodule(encoder.layers[layer], encoder.architecture.paths[kind], module)
    if isinstance(module, GroupedLinear):
        module.settle()


def set_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at an attribute path."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def like(old: nn.Module, new: nn.Module) -> nn.Module:
    """Give a layer the mode of the one whose place it takes, and let it train only what trained before."""
    frozen = {name for name, parameter in old.named_parameters() if not parameter.requires_grad}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return new.train(old.training)


def dense_twin(model: Model) -> Model:
    """Make the plain transformers model that computes what a grouped model computes.

    Every block goes back into a full matrix with zeros elsewhere (Ŵ*); a dropped sublayer has zero weights and its
    constant in the closing bias. Inside a sublayer, neurons and heads stand as they were folded. The twin is as slow
    as the dense model was, but needs nothing of this package.

    Args:
        model: A transformers model that is, or wraps, a grouped encoder.

    Returns:
        A new model of the same class (of an exported model's: its transformers class), with equal outputs in eval
        mode.
    """
    twin = make_plain(model)
    twin.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
    state = model.state_dict()
    for encoder in find_encoders(model):
        for layer in range(len(encoder.layers)):
            for kind in MATRICES:
                state.update(_dense_state(encoder, layer, kind, twin.get_submodule(encoder.path(layer, kind))))
    wanted = twin.state_dict()
    twin.load_state_dict({name: state[name] for name in wanted})
    twin.train(model.training)
    return twin


def make_plain(model: Model) -> Model:
    """Make a dense model of a model's transformers class, with random weights."""
    exported = getattr(model, "make_plain", None)  # an exported model is of a subclass, and knows what it came from
    plain: Model = type(model)(copy.deepcopy(model.config)) if exported is None else exported()
    return plain


def _dense_state(encoder: Encoder, layer: int, kind: str, target: nn.Module) -> dict[str, Tensor]:
    """Return weight and bias of the dense layer that stands for one matrix; neurons and heads left come first."""
    assert isinstance(target, nn.Linear)
    path = encoder.path(layer, kind)
    module = encoder.find_matrix(layer, kind)
    weight = torch.zeros_like(target.weight)
    bias = torch.zeros_like(target.bias)
    if isinstance(module, nn.Linear):
        weight[: module.out_features, : module.in_features] = module.weight
    elif isinstance(module, GroupedLinear):
        weight[: module.out_features, : module.in_features] = module.dense_weight()
    if isinstance(module, (nn.Linear, GroupedLinear, ConstantLinear)) and module.bias is not None:
        bias[: module.out_features] = module.bias
    return {f"{path}.weight": weight, f"{path}.bias": bias}


def _already_grouped(encoder: Encoder) -> str:
    return (
        f"the encoder at {encoder.name or 'the root'!r} is grouped already and cannot be pruned again. To go on "
        "re-finetuning it, drop the pruning step (or resume with ckpt_path); to prune it differently, start "
        "from the dense fine-tuned model."
    )
