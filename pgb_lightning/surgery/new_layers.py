"""Create layers that replace others: blank layers of a given structure, and selections of inputs or outputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import REMOVED, BlockShape, as_matrix


@torch.no_grad()
def select_features(linear: nn.Linear, features: Sequence[int] | None, of_inputs: bool) -> nn.Linear:
    """Return a layer with the given inputs or outputs of another layer, in the given order.

    Args:
        linear: The layer.
        features: The inputs or outputs; ``None`` returns the layer itself.
        of_inputs: Whether inputs are selected, or outputs.
    """
    if features is None:
        return linear
    index = torch.tensor(features, device=linear.weight.device)
    weight = linear.weight.index_select(int(of_inputs), index)
    selected = blank_layer(linear, (weight.shape[1], weight.shape[0]), None)
    assert isinstance(selected, nn.Linear)
    selected.weight.copy_(weight)
    if linear.bias is not None:
        selected.bias.copy_(linear.bias if of_inputs else linear.bias[index])
    return selected


@torch.inference_mode(False)  # A model that is loaded in inference mode can be trained, with or without pruning.
def blank_layer(
    old: nn.Module, size: tuple[int, int], shape: BlockShape | None, make_bias: bool = False
) -> nn.Linear | GroupedLinear | ConstantLinear:
    """Return a layer of a given structure to replace another one. Its weights are not initialized.

    Args:
        old: The layer to replace; it determines the bias, the device, the data type, the mode, and which parameters
            require gradients.
        size: M and N.
        shape: The block shape; ``REMOVED`` if the matrix is removed, ``None`` if it is dense.
        make_bias: Whether a removed matrix gets a bias if the old layer has none.

    Raises:
        ValueError: If the blocks do not fit the matrix.
    """
    rows, columns = size
    first = like_tensor(old)
    device, dtype = first.device, first.dtype
    bias = as_matrix(old).bias is not None or (make_bias and shape == REMOVED)
    blank: nn.Linear | GroupedLinear | ConstantLinear
    if shape is None:
        blank = nn.Linear(rows, columns, bias=bias, device=device, dtype=dtype)
    elif shape == REMOVED:
        blank = ConstantLinear(rows, columns, bias=bias, device=device, dtype=dtype)
    else:
        blank = GroupedLinear(
            rows,
            columns,
            num_groups=shape.groups,
            block_in=shape.inputs,
            block_out=shape.outputs,
            bias=bias,
            device=device,
            dtype=dtype,
        )
    keep_training_state(old, blank)
    return blank


def like_tensor(module: nn.Module) -> Tensor:
    """Return a tensor of a module with its device and data type.

    Without biases, a pruned module may only have the empty weights of removed matrices, which are buffers.
    """
    return next(t for t in chain(module.parameters(), module.buffers()) if t.is_floating_point())


def keep_training_state(old: nn.Module, new: nn.Module) -> None:
    """Copy the mode (training or eval) and ``requires_grad`` of the parameters from the replaced module.

    A parameter that the old module lacks is trained if any of the old module's parameters is, or if it has none.
    """
    trained = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(trained.get(name, any(trained.values()) or not trained))
    new.train(old.training)
