"""The structure of an encoder: the blocks of each matrix, without their weights and positions.

A :class:`Structure` is made from a plan, a state dict or a record in ``config.json``. It is validated when it is made,
and built in one place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import EXPENDABLE, SUBLAYERS, Sublayer
from pgb_lightning.layers.matrix import REMOVED, BlockShape, as_matrix, find_matrix_layer
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery.build import install
from pgb_lightning.surgery.folding import Folded, fold_plan
from pgb_lightning.surgery.new_layers import blank_layer
from pgb_lightning.surgery.stored import is_removed, split_fused, stored_path, stored_size

#: Increased whenever the meaning of a record changes.
STRUCTURE_VERSION = 2

#: Version 1, of 0.1.0, does not name the modules that an encoder lacks.
READABLE_VERSIONS = (1, 2)

#: The entry of a removed matrix in a record.
GONE = "gone"

#: Stored in every exported ``config.json``, for users who find that the model does not load without this package.
REQUIRES = (
    "This model was pruned by pgb-lightning and needs it: `pip install pgb-lightning`, then `import pgb_lightning` "
    "before loading."
)


@dataclass(frozen=True)
class SublayerStructure:
    """The structure of one sublayer.

    Args:
        inner_size: Number of neurons, or of features of the heads, that are kept.
        blocks: For each matrix kind its block shape: :data:`REMOVED` if it is removed, ``None`` if it is dense.
    """

    inner_size: int
    blocks: Mapping[str, BlockShape | None]

    @classmethod
    def of_folded(cls, encoder: Encoder, name: Sublayer, folded: Folded) -> SublayerStructure:
        """Return the structure that a folded part of a plan gives to a sublayer."""
        closing = folded.matrices[SUBLAYERS[name][-1]]
        size = closing.rows if closing.num_groups else encoder.inner_size(name)
        return cls(size, {kind: matrix.block_shape for kind, matrix in folded.matrices.items()})

    @property
    def is_dropped(self) -> bool:
        """Whether the sublayer only adds a constant."""
        return all(shape == REMOVED for shape in self.blocks.values())

    def is_dense(self, encoder: Encoder, name: Sublayer) -> bool:
        """Return whether nothing is removed."""
        return self.inner_size == encoder.inner_size(name) and all(shape is None for shape in self.blocks.values())

    def check(self, encoder: Encoder) -> None:
        """Check that the blocks fit the matrices, and that a sublayer without an essential matrix is dropped.

        Args:
            encoder: The encoder.

        Raises:
            ValueError: If blocks do not fit a matrix, or an essential matrix is missing from a sublayer that is not
                dropped. The message names the matrix.
        """
        removed = [kind for kind, shape in self.blocks.items() if shape == REMOVED and kind not in EXPENDABLE]
        if removed and not self.is_dropped:
            raise ValueError(
                f"{removed[-1]} is removed, so the sublayer only adds a constant. All of {', '.join(self.blocks)} must "
                "be removed then."
            )
        for kind, shape in self.blocks.items():
            rows, columns = encoder.matrix_size(kind, self.inner_size)
            if shape is None or shape == REMOVED:
                continue
            fits = min(shape) > 0 and shape.groups * shape.inputs <= rows and shape.groups * shape.outputs <= columns
            if not fits:
                raise ValueError(
                    f"{kind}: {shape.groups} blocks of {shape.inputs} x {shape.outputs} do not fit a matrix of "
                    f"{rows} x {columns}."
                )


@dataclass(frozen=True)
class Structure:
    """The structure of each sublayer of an encoder.

    Args:
        sublayers: For each layer, its sublayers.
    """

    sublayers: tuple[Mapping[Sublayer, SublayerStructure], ...]

    def is_dense(self, encoder: Encoder) -> bool:
        """Return whether nothing is removed from any sublayer."""
        return all(part.is_dense(encoder, name) for layer in self.sublayers for name, part in layer.items())

    @classmethod
    def of(cls, encoder: Encoder) -> Structure:
        """Return the structure that an encoder has, dense or pruned."""
        layers = []
        for layer in range(encoder.num_layers):
            sublayers: dict[Sublayer, SublayerStructure] = {}
            for name, kinds in encoder.sublayers.items():
                modules = {kind: encoder.find_matrix(layer, kind) for kind in kinds}
                blocks = {kind: REMOVED if m is None else as_matrix(m).block_shape for kind, m in modules.items()}
                closing = None if encoder.is_dropped(layer, name) else modules[kinds[-1]]
                features = encoder.inner_size(name) if closing is None else as_matrix(closing).in_features
                sublayers[name] = SublayerStructure(features, blocks)
            layers.append(sublayers)
        return cls(tuple(layers))

    @classmethod
    def from_plan(cls, encoder: Encoder, plan: PruningPlan, fold_orders: bool = True) -> Structure:
        """Return the structure that a plan gives to an encoder.

        Args:
            encoder: The encoder, dense or pruned.
            plan: A plan for it.
            fold_orders: Whether permutations are folded, as in the current release.
        """
        layers: list[dict[Sublayer, SublayerStructure]] = [{} for _ in range(plan.num_layers)]
        for layer, name, folded in fold_plan(plan, encoder.attention_unit, fold_orders):
            layers[layer][name] = SublayerStructure.of_folded(encoder, name, folded)
        return cls(tuple(layers))

    @classmethod
    def from_state_dict(cls, encoder: Encoder, state_dict: Mapping[str, Tensor], prefix: str = "") -> Structure:
        """Determine the structure from the shapes in a state dict.

        A three-dimensional weight holds blocks, a bias without weights is a removed matrix, and a bias that is shorter
        than in the configuration belongs to a sublayer with fewer neurons or heads. A matrix without entries, or with
        entries of another library (adapters, parametrizations), keeps its structure and size in the encoder, unless its
        sublayer is dropped.

        Args:
            encoder: The encoder for which the state dict is meant.
            state_dict: Tensors by name.
            prefix: Prefix of the names.
        """
        state_dict = split_fused(encoder, state_dict, prefix)
        layers = []
        for layer in range(encoder.num_layers):
            sublayers: dict[Sublayer, SublayerStructure] = {}
            for name, kinds in encoder.sublayers.items():
                paths = {kind: stored_path(encoder, layer, kind, prefix) for kind in kinds}
                is_dropped = is_removed(state_dict, paths[kinds[-1]])
                blocks: dict[str, BlockShape | None] = {}
                for kind, path in paths.items():
                    weight, module = state_dict.get(f"{path}.weight"), encoder.find_matrix(layer, kind)
                    if weight is not None:
                        blocks[kind] = BlockShape(*weight.shape) if weight.dim() == 3 else None
                    elif is_dropped or module is None or is_removed(state_dict, path):
                        blocks[kind] = REMOVED
                    else:
                        matrix = find_matrix_layer(module)
                        blocks[kind] = None if matrix is None else matrix.block_shape
                size = stored_size(encoder, name, kinds[-2], paths[kinds[-2]], state_dict)
                size = _own_size(encoder, layer, name) if size is None else size
                sublayers[name] = SublayerStructure(size, blocks)
            layers.append(sublayers)
        return cls(tuple(layers))

    @classmethod
    def from_record(cls, encoder: Encoder, record: Mapping[str, Any]) -> Structure:
        """Read a record in ``config.json``.

        Args:
            encoder: The dense encoder for which the record is meant.
            record: The result of :meth:`to_record`.

        Raises:
            ValueError: If the record cannot be read or does not fit the encoder.
        """
        version = record.get("version") if isinstance(record, Mapping) else None
        if version not in READABLE_VERSIONS:
            raise ValueError(
                f"config.json's pgb record has version={version!r}. This release of pgb-lightning reads versions "
                f"up to {STRUCTURE_VERSION}: use the release that wrote it, or export the model again."
            )
        entries = record.get("layers")
        if not isinstance(entries, list) or len(entries) != encoder.num_layers:
            found = len(entries) if isinstance(entries, list) else "no"
            raise ValueError(
                f"config.json's pgb record describes {found} layers, but the encoder has {encoder.num_layers}."
            )
        layers = []
        for layer, entry in enumerate(entries):
            try:
                layers.append(_read_entry(encoder, entry))
            except ValueError as error:
                raise ValueError(f"config.json's pgb record, layer {layer}: {error}") from None
        return cls(tuple(layers))

    def to_record(self, encoder: Encoder) -> dict[str, Any]:
        """Return the structure as JSON primitives.

        Args:
            encoder: The encoder, for the sizes of dense sublayers.

        Returns:
            For every layer, an entry for each sublayer with fewer heads or neurons (the number of kept inner features),
            and for each matrix that is not dense: ``"GxMxN"`` for G blocks of M x N, ``"gone"`` if it is removed. These
            are strings because JSON writers put each number of a list on a line of its own.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from pgb_lightning.encoders import find_encoder
            >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
            >>> encoder = find_encoder(BertModel(tiny))
            >>> Structure.of(encoder).to_record(encoder)["layers"]
            [{}, {}]
        """
        layers: list[dict[str, str]] = []
        for sublayers in self.sublayers:
            sizes: dict[str, str] = {
                n: str(s.inner_size) for n, s in sublayers.items() if s.inner_size != encoder.inner_size(n)
            }
            shapes = {
                kind: GONE if shape == REMOVED else "x".join(map(str, shape))
                for structure in sublayers.values()
                for kind, shape in structure.blocks.items()
                if shape is not None
            }
            layers.append({**sizes, **shapes})
        return {"version": STRUCTURE_VERSION, "requires": REQUIRES, "layers": layers}

    def build(self, encoder: Encoder) -> None:
        """Give an encoder this structure, in place. The weights of new layers are not initialized.

        Args:
            encoder: The encoder; layers that already have the structure are kept.
        """
        if self.is_dense(encoder):
            return
        for layer, sublayers in enumerate(self.sublayers):
            for name, structure in sublayers.items():
                new: dict[str, nn.Module] = {}
                for kind, shape in structure.blocks.items():
                    old = encoder.find_matrix(layer, kind)
                    size = encoder.matrix_size(kind, structure.inner_size)
                    if old is not None and not _has(old, size, shape):
                        new[kind] = blank_layer(old, size, shape, encoder.family.makes_bias(kind))
                install(encoder, layer, name, new, structure.is_dropped)


def _read_entry(encoder: Encoder, entry: Mapping[str, str]) -> dict[Sublayer, SublayerStructure]:
    """Read the entry of one layer in a record.

    Raises:
        ValueError: If an entry is unknown, malformed, or does not fit the encoder.
    """
    known = (*encoder.sublayers, *encoder.matrices)
    if unknown := [key for key in entry if key not in known]:
        raise ValueError(f"{unknown[0]!r}: {entry[unknown[0]]!r} is unknown; expected one of {', '.join(known)}.")
    sublayers: dict[Sublayer, SublayerStructure] = {}
    for name, kinds in encoder.sublayers.items():
        size = str(entry.get(name, encoder.inner_size(name)))
        if not size.isdecimal() or not encoder.is_inner_size(name, int(size)):
            raise ValueError(
                f"{name!r}: {size!r} must be a multiple of {encoder.unit(name)} up to {encoder.inner_size(name)}."
            )
        blocks = {kind: _read_shape(kind, entry.get(kind)) for kind in kinds}
        structure = SublayerStructure(int(size), blocks)
        structure.check(encoder)
        sublayers[name] = structure
    return sublayers


def _read_shape(kind: str, shape: object) -> BlockShape | None:
    if shape is None:
        return None
    if shape == GONE:
        return REMOVED
    if not re.fullmatch(r"\d+x\d+x\d+", str(shape)):
        raise ValueError(
            f"{kind!r}: {shape!r} must give groups x block inputs x block outputs, such as '2x192x192', or {GONE!r}."
        )
    return BlockShape(*map(int, str(shape).split("x")))


def _own_size(encoder: Encoder, layer: int, name: Sublayer) -> int:
    """Return a sublayer's number of inner features, or that of the dense encoder if its layers do not show it."""
    closing = find_matrix_layer(encoder.find_matrix(layer, encoder.sublayers[name][-1]))
    return encoder.inner_size(name) if closing is None else closing.in_features


def _has(module: nn.Module, size: tuple[int, int], shape: BlockShape | None) -> bool:
    """Return whether a layer has the given size and block shape; true for layers of other libraries, which are kept."""
    matrix = find_matrix_layer(module)
    return matrix is None or ((matrix.in_features, matrix.out_features) == size and matrix.block_shape == shape)
