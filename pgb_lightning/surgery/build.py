"""Put layers into an encoder: the one place where its modules are replaced."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pgb_lightning.encoders.base import SUBLAYERS, Encoder, Sublayer
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import REMOVED, BlockShape, as_matrix
from pgb_lightning.layers.token_chunks import TokenChunks


def install(
    encoder: Encoder, layer: int, sublayer: Sublayer, modules: Mapping[str, nn.Module], is_dropped: bool
) -> None:
    """Replace the matrices of one sublayer, in place.

    Args:
        encoder: The encoder.
        layer: Layer index.
        sublayer: The sublayer.
        modules: The new layers, by matrix kind.
        is_dropped: Whether nothing is left of the sublayer but the constant that it adds.
    """
    for kind, module in modules.items():
        encoder.set_matrix(layer, kind, module)
    if is_dropped:
        drop_sublayer(encoder, layer, sublayer)
    if sublayer == "ffn":
        use_token_chunks(encoder, layer)


def blank_layer(
    old: nn.Module, size: tuple[int, int], shape: BlockShape | None
) -> nn.Linear | GroupedLinear | ConstantLinear:
    """Return a layer of a given structure, whose weights are still to be set, to replace another one.

    Args:
        old: The layer to replace; it determines the bias, the device, the data type, the mode, and which parameters
            require gradients.
        size: M and N.
        shape: The block shape; ``REMOVED`` if the matrix is removed, ``None`` if it is dense.

    Raises:
        ValueError: If the blocks do not fit the matrix.
    """
    rows, columns = size
    first = next(old.parameters())
    device, dtype, bias = first.device, first.dtype, as_matrix(old).bias is not None
    blank: nn.Linear | GroupedLinear | ConstantLinear
    if shape is None:
        blank = nn.Linear(rows, columns, bias=bias, device=device, dtype=dtype)
    elif shape == REMOVED:
        blank = ConstantLinear(rows, columns, device=device, dtype=dtype)
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
    frozen = {name for name, parameter in old.named_parameters() if not parameter.requires_grad}
    for name, parameter in blank.named_parameters():
        parameter.requires_grad_(name not in frozen)
    blank.train(old.training)
    return blank


def drop_sublayer(encoder: Encoder, layer: int, sublayer: Sublayer) -> None:
    """Remove all of a sublayer but the constant that it adds, which is the bias of its closing matrix."""
    core, closing = encoder.family.cores[sublayer], encoder.family.paths[SUBLAYERS[sublayer][-1]]
    block = encoder.layers[layer]
    if isinstance(block.get_submodule(core), DroppedCore):
        return
    inside = closing.removeprefix(f"{core}.") if closing.startswith(f"{core}.") else None
    constant = block.get_submodule(closing) if inside else None
    block.set_submodule(core, DroppedCore(inside, constant, returns_tuple=sublayer == "attention"))


def use_token_chunks(encoder: Encoder, layer: int) -> None:
    """Run a layer's feed-forward sublayer on chunks of tokens, if it has such a method and was not dropped."""
    if encoder.family.tokenwise is None:
        return
    path, method = encoder.family.tokenwise
    owner = encoder.layers[layer].get_submodule(path)
    vars(owner).pop(method, None)
    if encoder.find_matrix(layer, "W1") is not None:
        opening = encoder.family.paths["W1"].removeprefix(f"{path}.")
        setattr(owner, method, TokenChunks(owner, method, opening))
