"""Rebuild a pruned encoder when its state dict is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import Tensor, nn

from pgb_lightning._compat import is_fsdp_name, state_dict_versions
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.encoders.wrappers import state_dict_path
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import REMOVED, BlockShape, find_matrix_layer
from pgb_lightning.surgery.finish import finish
from pgb_lightning.surgery.stored import split_fused, stored_path
from pgb_lightning.surgery.structure import Structure


class StructureError(ValueError):
    """Raised if the module's encoder cannot be rebuilt with the structure of a state dict."""


def follow_state_dict(module: nn.Module) -> None:
    """Make a module rebuild its pruned layers whenever a pruned state dict is loaded into it.

    The structure of a pruned encoder is determined from its state dict
    (:meth:`~pgb_lightning.surgery.structure.Structure.from_state_dict`), and layers are replaced accordingly before
    torch copies the weights. Call this function once in the ``__init__`` of a ``LightningModule``. Then
    ``load_from_checkpoint``, resuming and every ``ckpt_path`` rebuild the pruned model. Calling it again has no effect.

    Loading raises :class:`StructureError`, a ``ValueError``, if the state dict belongs to another encoder or was
    written by a newer release. The module is unchanged then.

    Args:
        module: Any module that holds supported encoders, or will hold them once it is built.

    Example:
        >>> class MyModule(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         follow_state_dict(self)
    """
    if not follows_state_dict(module):
        module.register_load_state_dict_pre_hook(_rebuild)  # type: ignore[no-untyped-call]
        module._follows_state_dict = True  # type: ignore[assignment]


def find_missing_encoder(module: nn.Module, state_dict: Mapping[str, Any]) -> str | None:
    """Return a message about an encoder that has no entries in a state dict, or ``None`` if there is no such encoder.

    Torch would list every missing entry, and only in a strict load.
    """
    for encoder in find_encoders(module):
        if _find_stored(encoder, state_dict, "") is None and not _is_sharded(encoder):
            return (
                f"The checkpoint has no layers at {_stack_prefix(encoder, '')[:-1]!r}, where the module has its "
                f"{encoder.model_type!r} encoder. Its weights are named {', '.join(list(state_dict)[:3])}, ...: it "
                "belongs to another model. Load it into the model that it was trained with; if the encoder is left out "
                "of checkpoints on purpose, set strict_loading=False in the module."
            )
    return None


def follows_state_dict(module: nn.Module) -> bool:
    """Return whether :func:`follow_state_dict` was called on a module."""
    return bool(getattr(module, "_follows_state_dict", False))


def _rebuild(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Give encoders the structure of ``state_dict`` (a ``load_state_dict`` pre-hook).

    Torch does not pass to the hook whether loading is strict. Entries that a non-strict load may omit are therefore
    left to torch: those of an encoder without any entries, and of parts of a dense encoder, which define no structure.
    """
    encoders = [encoder for encoder in find_encoders(module) if not _is_sharded(encoder)]
    stored = [found for encoder in encoders if (found := _find_stored(encoder, state_dict, prefix))]
    if encoders and not stored:
        _check_prefix(encoders, state_dict, prefix)
    own = {prefix + name: value for name, value in module.state_dict(keep_vars=True).items()} if stored else {}
    affected = [e for e in stored if _differs(state_dict, e, prefix, own) or _covers(state_dict, e, prefix)]
    structures = [_read_structure(encoder, state_dict, prefix) for encoder in affected]
    if affected:
        _check_other_entries(affected, state_dict, own)
    for encoder, structure in zip(affected, structures, strict=True):
        structure.build(encoder)
        if not structure.is_dense(encoder):
            finish(encoder)


def _stack_prefix(encoder: Encoder, prefix: str) -> str:
    """Return the prefix of the names of the layers' entries in a state dict."""
    return f"{prefix}{state_dict_path(encoder.name, encoder.family.layers)}."


def _find_stored(encoder: Encoder, state_dict: Mapping[str, Any], prefix: str) -> Encoder | None:
    """Return the encoder under the first of its names that has entries in a state dict, or ``None`` if none has."""
    named = (replace(encoder, name=name) for name in encoder.names)
    return next((e for e in named if any(key.startswith(_stack_prefix(e, prefix)) for key in state_dict)), None)


def _is_sharded(encoder: Encoder) -> bool:
    """Return whether FSDP or DeepSpeed has sharded a model: its shapes are meaningless, and it cannot be rebuilt."""
    wrapped = any(is_fsdp_name(name) for name, _ in encoder.model.named_modules())
    in_pieces = any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in encoder.model.parameters())
    return wrapped or in_pieces or is_fsdp_name(encoder.name)


def _read_structure(encoder: Encoder, state_dict: Mapping[str, Tensor], prefix: str) -> Structure:
    """Read a structure and check that the module's encoder can be rebuilt with it.

    Raises:
        StructureError: If the state dict is of another encoder, of a newer release, or dense where the module's encoder
            is pruned.
    """
    _check_names(encoder, state_dict, prefix)
    structure = Structure.from_state_dict(encoder, state_dict, prefix)
    parts = split_fused(encoder, state_dict, prefix)
    for layer, sublayers in enumerate(structure.sublayers):
        for name, sublayer in sublayers.items():
            for kind, shape in sublayer.blocks.items():
                path = stored_path(encoder, layer, kind, prefix)
                size = encoder.matrix_size(kind, sublayer.inner_size)
                dense = encoder.matrix_size(kind, encoder.inner_size(name))
                _check_entries(path, parts, encoder.find_matrix(layer, kind), shape, size, dense)
            try:
                sublayer.check(encoder)
            except ValueError as error:
                raise StructureError(
                    f"The checkpoint's encoder at {encoder.where} cannot be rebuilt: layer {layer}: {error} Load a "
                    "complete checkpoint."
                ) from None
    return structure


def _check_prefix(encoders: list[Encoder], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Refuse a state dict whose names have an extra prefix, since loading it would not change any encoder."""
    for encoder in encoders:
        inner = f".{_stack_prefix(encoder, '')}"
        longer = next(
            (name for name in state_dict if inner in f".{name}" and not name.startswith(prefix + inner[1:])), None
        )
        if longer is not None:
            wrapper = longer[: longer.index(inner) + 1]
            raise StructureError(
                f"The names of the checkpoint's weights start with {wrapper!r}, as those of a wrapped module do. "
                f"Remove the prefix {wrapper!r} from them."
            )


def _layer_numbers(encoder: Encoder, state_dict: Mapping[str, Any], prefix: str) -> set[str]:
    """Return the numbers of the layers that have entries in a state dict."""
    stack = _stack_prefix(encoder, prefix)
    return {name[len(stack) :].partition(".")[0] for name in state_dict if name.startswith(stack)}


def _check_names(encoder: Encoder, state_dict: Mapping[str, Any], prefix: str) -> None:
    """Check that there are entries for all layers of the module, in a layout that this release reads."""
    numbers = _layer_numbers(encoder, state_dict, prefix)
    if len(numbers) != encoder.num_layers:
        raise StructureError(
            f"The checkpoint's encoder at {_stack_prefix(encoder, prefix)[:-1]!r} has {len(numbers)} layers, but the "
            f"module's has {encoder.num_layers}. Build the module from the configuration that the checkpoint was "
            "trained with."
        )
    versions = state_dict_versions(state_dict)
    for layer in range(encoder.num_layers):
        for kind in encoder.matrices:
            path = stored_path(encoder, layer, kind, prefix)
            version, newest = versions.get(path, 1), _newest_layout(state_dict.get(f"{path}.weight"))
            if version > newest:
                raise StructureError(
                    f"{path} has layout {version}, written by a newer release of pgb-lightning. This release reads "
                    f"layouts up to {newest}: use the newer one."
                )


def _newest_layout(weight: Tensor | None) -> int:
    """Return the newest layout that this release can read for a layer with a given weight."""
    return GroupedLinear._version if weight is not None and weight.numel() else ConstantLinear._version


def _check_entries(
    path: str,
    state_dict: Mapping[str, Tensor],
    module: nn.Module | None,
    shape: BlockShape | None,
    size: tuple[int, int],
    dense: tuple[int, int],
) -> None:
    """Check that the stored entries of a matrix fit its layer.

    Args:
        path: The layer's path in the state dict.
        state_dict: Tensors by name.
        module: The layer, or ``None`` if it was removed with its sublayer.
        shape: The block shape that is stored.
        size: M and N of the matrix that is stored.
        dense: M and N of the dense encoder's matrix.
    """
    weight = state_dict.get(f"{path}.weight")
    if weight is None or shape == REMOVED:
        return
    current = find_matrix_layer(module)
    if module is not None and current is None:  # for layers of other libraries, torch checks the entries
        return
    is_dense = tuple(weight.shape) == dense[::-1]
    is_narrowed = current is None or (current.in_features, current.out_features) != dense
    if current is None or (shape is None and current.block_shape is not None) or (is_dense and is_narrowed):
        raise StructureError(
            f"The checkpoint has a dense matrix at {path}.weight, but the module's was pruned and cannot be restored. "
            "Load the dense checkpoint into a newly built module."
        )
    if shape is None:
        fits, found = tuple(weight.shape) == size[::-1], f"{weight.shape[1]} x {weight.shape[0]} weights"
    else:
        fits = all(
            index is not None
            and not index.is_floating_point()
            and index.shape == (shape.groups, features)
            and 0 <= int(index.min()) <= int(index.max()) < limit
            and int(index.flatten().bincount().max()) == 1
            for index, features, limit in (
                (state_dict.get(f"{path}.input_index"), shape.inputs, size[0]),
                (state_dict.get(f"{path}.output_index"), shape.outputs, size[1]),
            )
        )
        found = (
            f"{shape.groups} blocks of {shape.inputs} x {shape.outputs} without indices that are distinct integers "
            "within it"
        )
    if not fits:
        raise StructureError(
            f"{path}: the checkpoint has {found}, but the module's matrix is {size[0]} x {size[1]}. Build the module "
            "from the configuration that the checkpoint was trained with."
        )


def _check_other_entries(encoders: list[Encoder], state_dict: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check that all entries outside the layers fit, before the encoder is changed and torch refuses them."""
    inside = {id(value) for e in encoders for value in e.stack.state_dict(keep_vars=True).values()}
    for name, value in own.items():
        stored = state_dict.get(name)
        if id(value) in inside or not isinstance(stored, Tensor) or not isinstance(value, Tensor):
            continue
        if stored.shape != value.shape:
            raise StructureError(
                f"{name}: the checkpoint has shape {tuple(stored.shape)}, but the module has {tuple(value.shape)}. "
                "Build the module with the settings that the checkpoint was trained with."
            )


def _covers(state_dict: Mapping[str, Any], encoder: Encoder, prefix: str) -> bool:
    """Return whether a state dict has a complete encoder, and not only a part such as its biases and LayerNorms."""
    stack, count = _stack_prefix(encoder, prefix), encoder.num_layers
    removable = tuple(f".{path}" for path in encoder.family.norms.values())  # removed with their sublayer
    norms = [name for name, child in encoder.stack.named_modules() if _is_norm(child) and not name.endswith(removable)]
    state_dict = split_fused(encoder, state_dict, prefix)
    paths = {kind: [stored_path(encoder, n, kind, prefix) for n in range(count)] for kind in encoder.matrices}
    has_weights = any(f"{path}.weight" in state_dict for path in chain.from_iterable(paths.values()))
    last_openings = [path for kinds in encoder.sublayers.values() for path in paths[kinds[-2]]]
    has_openings = any(f"{path}.bias" in state_dict for path in last_openings)
    # Biases without any weight are a part of a model; if every sublayer was dropped, there are no such biases either.
    complete = has_weights or not has_openings
    same_depth = len(_layer_numbers(encoder, state_dict, prefix)) == count
    return same_depth and complete and all(f"{stack}{state_dict_path(name)}.weight" in state_dict for name in norms)


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a LayerNorm or RMSNorm, for which many models have a class of their own."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.dim() == 1


def _differs(state_dict: Mapping[str, Any], encoder: Encoder, prefix: str, own: Mapping[str, Any]) -> bool:
    """Return whether an entry of an existing layer is unknown to the module or has another shape."""
    stack = _stack_prefix(encoder, prefix)
    known = tuple(f"{stack}{number}." for number in range(encoder.num_layers))
    entries = {
        name: value for name, value in state_dict.items() if name.startswith(known) and isinstance(value, Tensor)
    }
    return any(name not in own or own[name].shape != value.shape for name, value in entries.items())
