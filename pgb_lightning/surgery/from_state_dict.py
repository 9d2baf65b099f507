"""Rebuild a pruned encoder when its state dict is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pgb_lightning._compat import is_fsdp_name, state_dict_versions
from pgb_lightning.encoders.base import MATRICES, Encoder, join_path
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.layers.matrix import BlockShape, find_matrix_layer
from pgb_lightning.surgery.structure import Structure


class StructureError(ValueError):
    """Raised if the module's encoder cannot be given the structure that a state dict has."""


def follow_state_dict(module: nn.Module) -> None:
    """Make a module rebuild its pruned layers whenever a pruned state dict is loaded into it.

    The structure of a pruned encoder can be read off its state dict
    (:meth:`~pgb_lightning.surgery.structure.Structure.from_state_dict`). Layers are replaced accordingly before torch
    copies the weights. Call it once in the ``__init__`` of a ``LightningModule``: ``load_from_checkpoint``, resuming
    and every ``ckpt_path`` then rebuild the pruned model. Calling it again has no effect.

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


def follows_state_dict(module: nn.Module) -> bool:
    """Return whether :func:`follow_state_dict` was called on a module."""
    return bool(getattr(module, "_follows_state_dict", False))


def _rebuild(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Give encoders the structure of ``state_dict`` (a ``load_state_dict`` pre-hook)."""
    encoders = [encoder for encoder in find_encoders(module) if not _is_sharded(encoder)]
    own = {prefix + name: value for name, value in module.state_dict().items()} if encoders else {}
    # Torch does not tell the hook whether loading is strict. A state dict with a part of the module's entries, and no
    # others, is loaded as torch loads it: a part does not tell the structure.
    foreign = not state_dict.keys() <= own.keys()
    affected = [
        e for e in encoders if foreign or _covers(state_dict, e, prefix) or _differs(state_dict, e, prefix, own)
    ]
    structures = [_read_structure(encoder, state_dict, prefix) for encoder in affected]
    if affected:
        _check_other_entries(affected, state_dict, prefix, own)
    for encoder, structure in zip(affected, structures, strict=True):
        structure.build(encoder)


def _is_sharded(encoder: Encoder) -> bool:
    """Return whether FSDP or DeepSpeed has sharded a model: its shapes tell nothing, and its structure is final."""
    wrapped = any(is_fsdp_name(name) for name, _ in encoder.model.named_modules())
    in_pieces = any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in encoder.model.parameters())
    return wrapped or in_pieces or is_fsdp_name(encoder.name)


def _read_structure(encoder: Encoder, state_dict: Mapping[str, Tensor], prefix: str) -> Structure:
    """Read a structure and require that the module's encoder can be given it.

    Raises:
        StructureError: If the state dict is of another encoder, of a newer release, or dense where the module's encoder
            is pruned.
    """
    _check_names(encoder, state_dict, prefix)
    structure = Structure.from_state_dict(encoder, state_dict, prefix)
    for layer, sublayers in enumerate(structure.sublayers):
        for name, sublayer in sublayers.items():
            for kind, shape in sublayer.blocks.items():
                path = prefix + encoder.path(layer, kind)
                size = encoder.matrix_size(kind, sublayer.inner_size)
                dense = encoder.matrix_size(kind, encoder.inner_size(name))
                _check_entries(path, state_dict, encoder.find_matrix(layer, kind), shape, size, dense)
            try:
                sublayer.check(encoder, name)
            except ValueError as error:
                raise StructureError(
                    f"The checkpoint's encoder at {encoder.where} cannot be rebuilt: layer {layer}: {error} Load a "
                    "complete checkpoint."
                ) from None
    return structure


def _check_names(encoder: Encoder, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Require entries of as many layers at the encoder's path, in a layout that this release reads."""
    inner = join_path(encoder.name, encoder.family.layers)
    stack = f"{prefix}{inner}."
    numbers = {name[len(stack) :].partition(".")[0] for name in state_dict if name.startswith(stack)}
    if not numbers:
        longer = next((name for name in state_dict if f".{inner}." in name), None)
        if longer is not None:
            wrapper = longer[: longer.index(inner)]
            raise StructureError(
                f"The names of the checkpoint's weights start with {wrapper!r}, as those of a wrapped module do. "
                f"Remove the prefix {wrapper!r} from them."
            )
        raise StructureError(
            f"The checkpoint has no layers at {stack[:-1]!r}, where the module has its {encoder.model_type!r} encoder. "
            f"Its weights are named {', '.join(list(state_dict)[:3]) or 'nothing'}, ...: it belongs to another model."
        )
    if len(numbers) != len(encoder.layers):
        raise StructureError(
            f"The checkpoint's encoder at {stack[:-1]!r} has {len(numbers)} layers, but the module's has "
            f"{len(encoder.layers)}. Build the module from the configuration that the checkpoint was trained with."
        )
    versions = state_dict_versions(state_dict)
    for layer in range(len(encoder.layers)):
        for kind in MATRICES:
            path = prefix + encoder.path(layer, kind)
            version = versions.get(path, 1)
            if version > GroupedLinear._version:
                raise StructureError(
                    f"{path} has layout {version}, written by a newer release of pgb-lightning. This release reads "
                    f"layouts up to {GroupedLinear._version}: use the newer one."
                )


def _check_entries(
    path: str,
    state_dict: Mapping[str, Tensor],
    module: nn.Module | None,
    shape: BlockShape | None,
    size: tuple[int, int],
    dense: tuple[int, int],
) -> None:
    """Require that the layer of a matrix can take what is stored for it.

    Args:
        path: The layer's path in the state dict.
        state_dict: Tensors by name.
        module: The layer, or ``None`` if it was removed with its sublayer.
        shape: The block shape that is stored.
        size: M and N of the matrix that is stored.
        dense: M and N of the dense encoder's matrix.
    """
    weight = state_dict.get(f"{path}.weight")
    if weight is None:
        return
    current = find_matrix_layer(module)
    if module is not None and current is None:  # a layer of another library takes what torch loads into it
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


def _check_other_entries(
    encoders: list[Encoder], state_dict: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor]
) -> None:
    """Require that all entries outside the layers fit, before the encoder is changed and torch refuses them."""
    stacks = tuple(f"{prefix}{join_path(e.name, e.family.layers)}." for e in encoders)
    for name, value in own.items():
        stored = state_dict.get(name)
        if stored is not None and not name.startswith(stacks) and stored.shape != value.shape:
            raise StructureError(
                f"{name}: the checkpoint has shape {tuple(stored.shape)}, but the module has {tuple(value.shape)}. "
                "Build the module with the settings that the checkpoint was trained with."
            )


def _covers(state_dict: Mapping[str, Tensor], encoder: Encoder, prefix: str) -> bool:
    """Return whether a state dict has a complete encoder, and not only a part such as its biases and LayerNorms."""
    path = join_path(encoder.name, encoder.family.layers)
    stack = encoder.model.get_submodule(encoder.family.layers)
    norms = [name for name, child in stack.named_modules() if isinstance(child, nn.LayerNorm)]
    layers = range(len(encoder.layers))
    has_weights = any(f"{prefix}{encoder.path(n, kind)}.weight" in state_dict for n in layers for kind in MATRICES)
    has_openings = any(f"{prefix}{encoder.path(n, kind)}.bias" in state_dict for n in layers for kind in ("V", "W1"))
    # Biases without any weight are a part of a model; if every sublayer was dropped, there are no such biases either.
    complete = has_weights or not has_openings
    return complete and all(f"{prefix}{path}.{name}.weight" in state_dict for name in norms)


def _differs(state_dict: Mapping[str, Tensor], encoder: Encoder, prefix: str, own: Mapping[str, Tensor]) -> bool:
    """Return whether any entry of the encoder's layers has another shape than the module's, or no counterpart."""
    stack = f"{prefix}{join_path(encoder.name, encoder.family.layers)}."
    stored = ((own[name].shape, value.shape) for name, value in state_dict.items() if name.startswith(stack))
    return any(shape != other for shape, other in stored)
