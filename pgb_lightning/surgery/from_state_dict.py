"""Rebuild grouped layers from a state dict, whichever way it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pgb_lightning.encoders.base import MATRICES, SUBLAYERS, Encoder, Sublayer, join_path
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.surgery.apply import blank_layer, drop_sublayer, feed_in_chunks, put
from pgb_lightning.surgery.checks import is_pruned


class StructureError(ValueError):
    """A state dict whose encoder cannot be made from the module's."""


def follow_state_dict(module: nn.Module) -> None:
    """Let a module rebuild its grouped layers whenever a grouped state dict is loaded into it.

    The structure of a grouped encoder can be read off its state dict: a three-dimensional weight is blocks, a bias
    without a weight is a matrix pruned whole, and a matrix smaller than the configuration says has lost neurons or
    heads. Before torch copies the weights, layers are exchanged accordingly. Call it once in a ``LightningModule``'s
    ``__init__``, and ``load_from_checkpoint``, resuming and every ``ckpt_path`` rebuild what was pruned; calling it
    again does nothing.

    Loading then raises :class:`StructureError`, a ``ValueError``, where the state dict holds another encoder or was
    written by a newer release; the module has not changed then.

    Args:
        module: Any module that holds mapped encoders, or will when it is built.

    Example:
        >>> class MyModule(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         follow_state_dict(self)
    """
    if not follows_state_dict(module):
        module.register_load_state_dict_pre_hook(_rebuild)  # type: ignore[no-untyped-call]
        module._follows_state_dict = True  # type: ignore[assignment]


def follows_state_dict(module: nn.Module) -> bool:
    """Tell whether :func:`follow_state_dict` was called on a module."""
    return bool(getattr(module, "_follows_state_dict", False))


def _rebuild(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Exchange layers by the shapes in ``state_dict`` (a ``load_state_dict`` pre-hook)."""
    encoders = [encoder for encoder in find_encoders(module) if not _is_cut_up(encoder)]
    own = {prefix + name: value for name, value in module.state_dict().items()} if encoders else {}
    # Torch does not say whether loading is strict. Some of the module's own entries, and no others, are loaded as
    # torch loads them: from a part no structure can be read.
    foreign = not state_dict.keys() <= own.keys()
    whole = [e for e in encoders if foreign or _covers(state_dict, e, prefix) or _differs(state_dict, e, prefix, own)]
    for encoder in whole:
        _check(encoder, state_dict, prefix)
    if whole:
        _check_rest(whole, state_dict, prefix, own)
    for encoder in whole:
        for layer in range(len(encoder.layers)):
            for sublayer, kinds in SUBLAYERS.items():
                inside = inside_of(encoder, layer, sublayer, state_dict, prefix)
                for kind in kinds:
                    _rebuild_matrix(encoder, layer, kind, matrix_shape(encoder, kind, inside), state_dict, prefix)
                core = encoder.layers[layer].get_submodule(encoder.family.cores[sublayer])
                closing = prefix + encoder.path(layer, kinds[-1])
                if _is_constant(state_dict, closing) and not isinstance(core, DroppedCore):
                    drop_sublayer(encoder, layer, sublayer)
        if is_pruned(encoder):
            for layer in range(len(encoder.layers)):
                feed_in_chunks(encoder, layer)


def _is_cut_up(encoder: Encoder) -> bool:
    """Tell a model that FSDP or DeepSpeed holds in pieces: its shapes say nothing, and it has its final structure."""
    wrapped = any("_fsdp_wrapped_module" in name for name, _ in encoder.model.named_modules())
    in_pieces = any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in encoder.model.parameters())
    return wrapped or in_pieces or "_fsdp_wrapped_module" in encoder.name


def _check(encoder: Encoder, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Require a state dict of this encoder, in a layout that this release knows."""
    stack = prefix + join_path(encoder.name, encoder.family.layers) + "."
    numbers = {name[len(stack) :].partition(".")[0] for name in state_dict if name.startswith(stack)}
    if not numbers:
        names = ", ".join(list(state_dict)[:3])
        inner = join_path(encoder.name, encoder.family.layers)
        longer = next((name for name in state_dict if f".{inner}." in name), None)
        if longer is not None:
            wrapper = longer[: longer.index(inner)]
            raise StructureError(
                f"the checkpoint's weights are called {wrapper}..., those of a module that was wrapped; take the "
                f"prefix {wrapper!r} off their names."
            )
        raise StructureError(
            f"the checkpoint holds no layers at {stack[:-1]!r}, where the module has its {encoder.model_type!r} "
            f"encoder; its weights are called {names or 'nothing'}, ... It belongs to another model."
        )
    if len(numbers) != len(encoder.layers):
        raise StructureError(
            f"the checkpoint's encoder at {stack[:-1]!r} has {len(numbers)} layers, the module's has "
            f"{len(encoder.layers)}; build the module from the configuration that the checkpoint was trained with."
        )
    versions = getattr(state_dict, "_metadata", {})
    for layer in range(len(encoder.layers)):
        for kind in MATRICES:
            name = prefix + encoder.path(layer, kind)
            version = versions.get(name, {}).get("version", 1)
            if version > GroupedLinear._version:
                raise StructureError(
                    f"{name} was written in layout {version} by a newer release of pgb-lightning; this one reads "
                    f"up to {GroupedLinear._version}: use that release."
                )
        for sublayer, kinds in SUBLAYERS.items():
            inside = inside_of(encoder, layer, sublayer, state_dict, prefix)
            for kind in kinds:
                name = prefix + encoder.path(layer, kind)
                shape = matrix_shape(encoder, kind, inside)
                dense = matrix_shape(encoder, kind, encoder.inner_size(sublayer))
                _check_shape(name, state_dict, encoder.find_matrix(layer, kind), shape, dense)


def inside_of(
    encoder: Encoder, layer: int, sublayer: Sublayer, state_dict: Mapping[str, Tensor], prefix: str = ""
) -> int:
    """Read off a state dict how many neurons, or features of heads, were left in a sublayer."""
    full = encoder.inner_size(sublayer)
    bias = state_dict.get(f"{prefix}{encoder.path(layer, SUBLAYERS[sublayer][-2])}.bias")
    unit = encoder.attention_unit if sublayer == "attention" else 1
    return full if bias is None or not 0 < len(bias) <= full or len(bias) % unit else len(bias)


def matrix_shape(encoder: Encoder, kind: str, inside: int) -> tuple[int, int]:
    """Return (M, N) of a matrix in a sublayer of which so much is left."""
    outside = int(encoder.model.config.hidden_size)
    return (inside, outside) if kind in ("O", "W2") else (outside, inside)


def _check_shape(
    name: str,
    state_dict: Mapping[str, Tensor],
    module: nn.Module | None,
    shape: tuple[int, int],
    dense: tuple[int, int],
) -> None:
    """Require that a matrix's entries can be had from the matrix that is there."""
    weight = state_dict.get(f"{name}.weight")
    if weight is None:
        return
    whole = tuple(weight.shape) == dense[::-1]
    if module is None or (weight.dim() == 2 and not isinstance(module, nn.Linear)):
        raise StructureError(_cannot_revive(name))
    if not isinstance(module, (nn.Linear, GroupedLinear, ConstantLinear)):
        return
    if whole and (module.in_features, module.out_features) != dense:
        raise StructureError(_cannot_revive(name))
    if weight.dim() == 3:
        rows, columns = state_dict.get(f"{name}.input_index"), state_dict.get(f"{name}.output_index")
        fits = all(
            index is not None
            and index.shape == (weight.shape[0], size)
            and 0 <= int(index.min()) <= int(index.max()) < top
            for index, size, top in ((rows, weight.shape[1], shape[0]), (columns, weight.shape[2], shape[1]))
        )
        what = f"{weight.shape[0]} blocks of {weight.shape[1]} x {weight.shape[2]} whose places are missing or outside"
    else:
        fits = tuple(weight.shape) == shape[::-1]
        what = f"{weight.shape[1]} x {weight.shape[0]} weights, not"
    if not fits:
        raise StructureError(
            f"{name}: the checkpoint holds {what} the module's {shape[0]} x {shape[1]}; build the module from the "
            "configuration that the checkpoint was trained with."
        )


def _check_rest(
    encoders: list[Encoder], state_dict: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor]
) -> None:
    """Require that all other entries fit, lest the encoder be rebuilt before torch refuses them."""
    stacks = tuple(f"{prefix}{join_path(e.name, e.family.layers)}." for e in encoders)
    for name, value in own.items():
        stored = state_dict.get(name)
        if stored is not None and not name.startswith(stacks) and stored.shape != value.shape:
            raise StructureError(
                f"{name}: the checkpoint holds {tuple(stored.shape)}, the module {tuple(value.shape)}; build the "
                "module with the settings that the checkpoint was trained with."
            )


def _covers(state_dict: Mapping[str, Tensor], encoder: Encoder, prefix: str) -> bool:
    """Tell a whole encoder from part of one, such as its biases and LayerNorms."""
    path = join_path(encoder.name, encoder.family.layers)
    stack = encoder.model.get_submodule(encoder.family.layers)
    norms = [name for name, child in stack.named_modules() if isinstance(child, nn.LayerNorm)]
    layers = range(len(encoder.layers))
    has_weights = any(f"{prefix}{encoder.path(n, kind)}.weight" in state_dict for n in layers for kind in MATRICES)
    has_openings = any(f"{prefix}{encoder.path(n, kind)}.bias" in state_dict for n in layers for kind in ("V", "W1"))
    # Biases without any weight are part of a model; where everything was dropped, there are no such biases either.
    whole = has_weights or not has_openings
    return whole and all(f"{prefix}{path}.{name}.weight" in state_dict for name in norms)


def _differs(state_dict: Mapping[str, Tensor], encoder: Encoder, prefix: str, own: Mapping[str, Tensor]) -> bool:
    """Tell whether any of the encoder's layers would not take what is stored for it."""
    stack = f"{prefix}{join_path(encoder.name, encoder.family.layers)}."
    stored = ((own[name].shape, value.shape) for name, value in state_dict.items() if name.startswith(stack))
    return any(shape != other for shape, other in stored)


def _rebuild_matrix(
    encoder: Encoder, layer: int, kind: str, shape: tuple[int, int], state_dict: Mapping[str, Tensor], prefix: str
) -> None:
    """Give one matrix the structure that its entries in ``state_dict`` have, which :func:`_check` found possible."""
    name = prefix + encoder.path(layer, kind)
    weight = state_dict.get(f"{name}.weight")
    module = encoder.find_matrix(layer, kind)
    if not isinstance(module, (nn.Linear, GroupedLinear, ConstantLinear)):
        return
    if weight is None and f"{name}.bias" not in state_dict:
        return
    blocks = () if weight is None else tuple(weight.shape) if weight.dim() == 3 else None
    if (module.in_features, module.out_features) != shape or _blocks(module) != blocks:
        put(encoder, layer, kind, blank_layer(module, shape, blocks, f"{name}.bias" in state_dict))


def _blocks(module: nn.Linear | GroupedLinear | ConstantLinear) -> tuple[int, ...] | None:
    """Say of a layer what :func:`blank_layer` wants to know."""
    if isinstance(module, GroupedLinear):
        return tuple(module.weight.shape)
    return () if isinstance(module, ConstantLinear) else None


def _is_constant(state_dict: Mapping[str, Tensor], name: str) -> bool:
    """Tell a matrix pruned whole: its bias is there, its weight is not."""
    return f"{name}.bias" in state_dict and f"{name}.weight" not in state_dict


def _cannot_revive(name: str) -> str:
    return (
        f"the state dict holds a dense matrix at {name}.weight, but the module's was pruned and cannot be made "
        "whole again; load the dense checkpoint into a freshly built module."
    )
