"""Find the entries of each matrix in a state dict, whether stored separately or in a fused linear layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import KEY_VALUE, Sublayer
from pgb_lightning.layers.linear import SIZE


def split_fused(encoder: Encoder, state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return a state dict in which each part of a dense fused linear layer has an entry of its own.

    Only the shapes of these entries are valid, since interleaved parts are not reordered.

    Args:
        encoder: The encoder.
        state_dict: Tensors by name. It is not modified.
        prefix: Prefix of the names.
    """
    state = dict(state_dict)
    for layer in range(encoder.num_layers):
        for kinds in encoder.family.linears.values():
            path = prefix + encoder.path(layer, kinds[0])
            for name in ("weight", "bias"):
                fused = state.get(f"{path}.{name}")
                if fused is not None and len(kinds) > 1 and len(fused) % len(kinds) == 0:
                    state |= {f"{path}.{kind}.{name}": fused[: len(fused) // len(kinds)] for kind in kinds}
    return state


def stored_path(encoder: Encoder, layer: int, kind: str, prefix: str = "") -> str:
    """Return the name of a matrix's layer in the result of :func:`split_fused`."""
    path = prefix + encoder.path(layer, kind)
    return f"{path}.{kind}" if len(encoder.family.parts(kind)) > 1 else path


def is_removed(state_dict: Mapping[str, Tensor], path: str) -> bool:
    """Return whether a state dict has a layer without weights: an empty weight, or only a bias in 0.1.0."""
    names = {name for name in state_dict if name.startswith(f"{path}.") and state_dict[name].numel()}
    return names == {f"{path}.bias"} or (not names and f"{path}.weight" in state_dict)


def stored_size(encoder: Encoder, name: Sublayer, kind: str, path: str, state_dict: Mapping[str, Tensor]) -> int | None:
    """Return the number of kept inner features, given the tensors of an opening matrix.

    Returns:
        The number; that of the dense encoder if the stored number cannot be one of the encoder's, and ``None`` if there
        are no tensors.
    """
    weight, bias, size = (state_dict.get(f"{path}.{tensor}") for tensor in ("weight", "bias", SIZE))
    if bias is not None:
        columns = len(bias)
    elif size is not None:
        columns = encoder.matrix_size(kind, encoder.inner_size(name))[1] if size.is_meta else int(size[1])
    elif weight is not None and weight.dim() == 2:
        columns = len(weight)
    else:
        return None
    features = columns * (encoder.queries_per_key if kind in KEY_VALUE else 1)
    return features if encoder.is_inner_size(name, features) else encoder.inner_size(name)
