"""Install layers in an encoder. All replacements of its modules are made here."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from pgb_lightning._compat import has_forward_hooks
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import Sublayer
from pgb_lightning.encoders.wrappers import replace_module
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.token_chunks import TokenChunks
from pgb_lightning.surgery.heads import follow_heads, save_heads


def install(
    encoder: Encoder,
    layer: int,
    sublayer: Sublayer,
    modules: Mapping[str, nn.Module],
    is_dropped: bool,
    features: Sequence[int] | None = None,
) -> None:
    """Replace the matrices of one sublayer, in place.

    Args:
        encoder: The encoder.
        layer: Layer index.
        sublayer: The sublayer.
        modules: The new layers, by matrix kind.
        is_dropped: Whether the sublayer is dropped and only adds a constant.
        features: The inner features that are kept, if some were removed and the weights of the others are to be kept.
    """
    encoder.set_matrices(layer, modules)
    if is_dropped:
        drop_sublayer(encoder, layer, sublayer)
    elif sublayer == "attention":
        follow_heads(encoder, layer, features)
    if sublayer == "ffn":
        use_token_chunks(encoder, layer)


def drop_sublayer(encoder: Encoder, layer: int, sublayer: Sublayer) -> None:
    """Remove a sublayer, except for the constant that it adds, which is the bias of its closing matrix."""
    family = encoder.family
    core, closing = family.cores[sublayer], family.paths[family.sublayers[sublayer][-1]]
    block = encoder.layers[layer]
    old = block.get_submodule(core)
    if isinstance(old, DroppedCore):
        return
    inside = closing.removeprefix(f"{core}.") if closing.startswith(f"{core}.") else None
    constant = block.get_submodule(closing) if inside else None
    core_norm = family.core_norms.get(sublayer)
    last_norm = None if core_norm is None else old.get_submodule(core_norm)
    hooked = [
        name
        for name, child in old.named_modules()
        if name and child is not constant and child is not last_norm and has_forward_hooks(child)
    ]
    if hooked:
        warnings.warn(
            f"Layer {layer} of the encoder at {encoder.where} loses its {sublayer} sublayer, so the hooks registered "
            f"on its {', '.join(f'{core}.{name}' for name in hooked)} no longer run.",
            stacklevel=2,
        )
    kept = {id(parameter) for module in (constant, last_norm) if module for parameter in module.parameters()}
    _freeze(old, kept)
    new = DroppedCore(
        closing_path=inside,
        closing=constant,
        returns_tuple=sublayer == "attention" and family.returns_tuple,
        norm_path=core_norm,
        norm=last_norm,
    )
    first_norm = family.norms.get(sublayer)
    if first_norm is not None and not first_norm.startswith(f"{core}."):
        _freeze(block.get_submodule(first_norm))
        replace_module(block.get_submodule(first_norm), nn.Identity(), encoder.roots)
    replace_module(old, new, encoder.roots)


def _freeze(module: nn.Module, kept: Collection[int] = ()) -> None:
    """Freeze the parameters of a module that is no longer used. It may remain in the model under another name."""
    for parameter in module.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)


@contextmanager
def undone_on_error(encoder: Encoder) -> Iterator[None]:
    """Undo what is replaced or frozen in an encoder inside the ``with`` block, if the block raises an error."""
    before = [
        (root, path, child)
        for root in encoder.roots
        for path, child in root.named_modules(remove_duplicate=False)
        if path
    ]
    chunked = [find_token_chunks(encoder, layer) is not None for layer in range(encoder.num_layers)]
    trained = [(parameter, parameter.requires_grad) for root in encoder.roots for parameter in root.parameters()]
    undo_heads = save_heads(encoder)
    try:
        yield
    except BaseException:
        for root, path, child in before:  # from the outside in
            if root.get_submodule(path) is not child:
                root.set_submodule(path, child)
        undo_heads()
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        for layer, was_chunked in enumerate(chunked):
            if not was_chunked:
                remove_token_chunks(encoder, layer)
        raise


def find_token_chunks(encoder: Encoder, layer: int) -> TokenChunks | None:
    """Return what :func:`use_token_chunks` has put into a layer, or ``None``."""
    if encoder.family.tokenwise is None:
        return None
    path, method = encoder.family.tokenwise
    found = vars(encoder.layers[layer].get_submodule(path)).get(method)
    return found if isinstance(found, TokenChunks) else None


def remove_token_chunks(encoder: Encoder, layer: int) -> None:
    """Undo :func:`use_token_chunks`."""
    if (chunks := find_token_chunks(encoder, layer)) is not None:
        chunks.remove()


def use_token_chunks(encoder: Encoder, layer: int) -> None:
    """Run a layer's feed-forward sublayer on chunks of tokens, if it has such a method and was not dropped.

    A method that was replaced on the instance by other code stays as it is.
    """
    if encoder.family.tokenwise is None:
        return
    path, method = encoder.family.tokenwise
    owner = encoder.layers[layer].get_submodule(path)
    remove_token_chunks(encoder, layer)
    first = encoder.sublayers["ffn"][0]
    if encoder.find_matrix(layer, first) is not None and method not in vars(owner):
        opening = encoder.family.paths[first].removeprefix(f"{path}.")
        TokenChunks(owner, method, opening).install()
