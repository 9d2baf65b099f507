"""The pruning plan: the blocks kept of each matrix, stored as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pgb_lightning.atomic_write import write_atomically
from pgb_lightning.encoders.family import (
    EXPENDABLE,
    GATES,
    KEY_VALUE,
    MATRICES,
    SUBLAYERS,
    Sublayer,
    sublayer_of,
    sublayers_of,
)
from pgb_lightning.layers.block_positions import as_tuples, check_blocks
from pgb_lightning.layers.matrix import REMOVED, BlockShape

#: Increased whenever the meaning of a stored plan changes.
SCHEMA_VERSION = 1

#: G index lists, one per block; ``()`` for a matrix that is removed, ``None`` for one that stays dense.
Index = tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True)
class MatrixPlan:
    """The plan for one weight matrix W in R^{M x N} (rows are inputs).

    Args:
        layer: Layer index, from 0.
        kind: One of Q, K, V, O, W1, W2, or W3 in a gated feed-forward network.
        rows: M, the number of inputs; if the matrix was pruned before, those that were kept.
        columns: N, the number of outputs, likewise.
        input_index: The rows of each block (π_r, split into G parts); ``()`` if the matrix is removed, ``None`` if it
            stays dense.
        output_index: The columns of each block (π_c), likewise.
        importance_kept: Fraction of the matrix's importance that lies in the blocks, in [0, 1].
        predicted_error: Predicted increase of the loss; ``None`` if unknown. Under ``search="groups"`` it is half the
            importance of the removed weights (Eq. 2), before compensation. Under ``search="shapes"`` it is the increase
            after compensation; that due to removed neurons or heads is counted at the sublayer's closing matrix.

    Raises:
        ValueError: If the blocks overlap, differ in size, or lie outside the matrix.
        TypeError: If ``importance_kept`` or ``predicted_error`` is not a number.
    """

    layer: int
    kind: str
    rows: int
    columns: int
    input_index: Index
    output_index: Index
    importance_kept: float = 1.0
    predicted_error: float | None = None

    def __post_init__(self) -> None:
        for name in ("importance_kept", "predicted_error"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) and not (value is None and name == "predicted_error"):
                raise TypeError(f"{name}={value!r} must be a number, for example 0.5.")
        if self.kind not in MATRICES:
            raise ValueError(f"{self}: kind={self.kind!r} is unknown. Use one of {', '.join(MATRICES)}.")
        if (self.input_index is None) != (self.output_index is None):
            raise ValueError(f"{self}: input_index and output_index must both be given, or both be null.")
        if self.input_index is None or self.output_index is None:
            if not self.total_parameters:
                raise ValueError(f"{self} has no weights: {self.rows} x {self.columns}. Use [] for its indices.")
            return
        if len(self.input_index) != len(self.output_index):
            raise ValueError(f"{self}: {len(self.input_index)} blocks of rows but {len(self.output_index)} of columns.")
        check_blocks(f"{self}: input_index", self.input_index, self.rows)
        check_blocks(f"{self}: output_index", self.output_index, self.columns)

    def __str__(self) -> str:
        return f"layer {self.layer} {self.kind}"

    @property
    def num_groups(self) -> int:
        """G: 0 if the matrix is removed, 1 if it is dense or a single smaller block."""
        return 1 if self.input_index is None else len(self.input_index)

    @property
    def block_shape(self) -> BlockShape | None:
        """G, m and n; ``REMOVED`` if the matrix is removed, ``None`` if it stays dense."""
        if self.input_index is None or self.output_index is None:
            return None
        if not self.input_index:
            return REMOVED
        return BlockShape(len(self.input_index), len(self.input_index[0]), len(self.output_index[0]))

    @property
    def total_parameters(self) -> int:
        """M · N, the weights of the dense matrix."""
        return self.rows * self.columns

    @property
    def kept_share(self) -> float:
        """Fraction of the matrix's weights in the blocks; 0 for a matrix without weights."""
        return self.kept_parameters / self.total_parameters if self.total_parameters else 0.0

    @property
    def kept_parameters(self) -> int:
        """Weights in the blocks."""
        shape = self.block_shape
        return self.total_parameters if shape is None else shape.groups * shape.inputs * shape.outputs


@dataclass(frozen=True)
class PruningPlan:
    """The plan for every matrix of an encoder: frozen, versioned, JSON-serializable.

    Args:
        model_type: The transformers ``model_type`` that the plan was made for.
        matrices: One entry for every layer and matrix kind, in order.
        config: The settings that the plan was made with (:meth:`PruningConfig.to_dict`); informative only.
        num_samples: Number of calibration samples.
        fingerprint: Hash of the dense weights that the plan was made for, as returned by
            :func:`~pgb_lightning.encoders.fingerprint.fingerprint`; empty if unknown.
        schema_version: Version of the plan's format.
        dense_sizes: Sizes of the sublayers of the dense encoder (features of all heads, and number of neurons), if the
            plan was made for an encoder that was pruned before; else ``None``. If keys and values have fewer heads than
            queries, also the features of ``"K"`` and ``"V"``. :attr:`pruning_ratio` always refers to the dense encoder.

    Raises:
        ValueError: If the entries do not form complete layers, a dropped sublayer keeps a matrix, or a matrix is larger
            than that of the dense encoder.

    Example:
        >>> dense = [MatrixPlan(0, kind, 8, 8, None, None) for kind in ("Q", "K", "V", "O", "W1", "W2")]
        >>> plan = PruningPlan("bert", tuple(dense))
        >>> PruningPlan.from_json(plan.to_json()) == plan
        True
    """

    model_type: str
    matrices: tuple[MatrixPlan, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    num_samples: int = 0
    fingerprint: str = ""
    schema_version: int = SCHEMA_VERSION
    dense_sizes: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        _check_version(self.schema_version)
        if not isinstance(self.config, Mapping):
            raise TypeError(f"config={self.config!r} must be a mapping.")
        found = [(matrix.layer, matrix.kind) for matrix in self.matrices]
        kinds = tuple(kind for kind in MATRICES if kind not in GATES or kind in self.kinds)
        expected = [(layer, kind) for layer in range(self.num_layers) for kind in kinds]
        if not found or found != expected:
            raise ValueError(
                f"matrices must list {', '.join(kinds)} for each of one or more layers, in order; the plan has "
                f"{len(found)} matrices."
            )
        for layer in range(self.num_layers):
            for kinds in self.sublayers.values():
                kept = [kind for kind in kinds if self.matrix(layer, kind).num_groups > 0]
                missing = [kind for kind in kinds if kind not in kept and kind not in EXPENDABLE]
                if kept and missing:
                    raise ValueError(
                        f"layer {layer}: {missing[0]} is removed, so its sublayer only adds a constant, but {kept[0]} "
                        f"is kept. Remove all of {', '.join(kinds)}."
                    )
        sizes = self.dense_sizes
        known = isinstance(sizes, Mapping) and SUBLAYERS.keys() <= sizes.keys() <= {*SUBLAYERS, *KEY_VALUE}
        if sizes is not None and not (known and all(type(size) is int and size > 0 for size in sizes.values())):
            raise ValueError(f"dense_sizes={sizes!r} must be null, or an integer for each of {', '.join(SUBLAYERS)}.")

    @property
    def num_layers(self) -> int:
        """Number of layers of the encoder."""
        return len(self.matrices) // max(len(self.kinds), 1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The matrix kinds of a layer, in order."""
        return tuple(matrix.kind for matrix in self.matrices[: len(MATRICES)] if matrix.layer == 0)

    @property
    def sublayers(self) -> dict[Sublayer, tuple[str, ...]]:
        """The matrix kinds of each sublayer."""
        return sublayers_of(self.kinds)

    def matrix(self, layer: int, kind: str) -> MatrixPlan:
        """Return the entry of one matrix."""
        return self.matrices[layer * len(self.kinds) + self.kinds.index(kind)]

    def is_dropped(self, layer: int, sublayer: Sublayer) -> bool:
        """Return whether a sublayer is dropped and becomes LayerNorm(x + bias')."""
        return all(self.matrix(layer, kind).num_groups == 0 for kind in self.sublayers[sublayer])

    @property
    def total_parameters(self) -> int:
        """Weights of the dense encoder's matrices; biases, embeddings and heads are not counted."""
        return sum(map(self.dense_parameters, self.matrices))

    def dense_parameters(self, matrix: MatrixPlan) -> int:
        """Return the weights of a matrix in the dense encoder, before any pruning."""
        if self.dense_sizes is None:
            return matrix.total_parameters
        width = self.matrices[0].rows  # of the hidden states, which all opening matrices read
        return width * self.dense_sizes.get(matrix.kind, self.dense_sizes[sublayer_of(matrix.kind)])

    def kept_share(self, matrix: MatrixPlan) -> float:
        """Return the number of kept weights of a matrix, as a fraction of its weights in the dense encoder."""
        return matrix.kept_parameters / self.dense_parameters(matrix)

    @property
    def kept_parameters(self) -> int:
        """Weights in all blocks."""
        return sum(matrix.kept_parameters for matrix in self.matrices)

    @property
    def pruning_ratio(self) -> float:
        """Fraction of the dense encoder's weights that are removed, by this plan and by earlier ones."""
        return 1 - self.kept_parameters / self.total_parameters

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON primitives, with derived entries for readers."""
        plain = {**asdict(self), "config": dict(self.config), "summary": self._summary()}
        if self.dense_sizes is None:
            del plain["dense_sizes"]  # so that releases without this field can read the plan
        for entry, matrix in zip(plain["matrices"], self.matrices, strict=True):
            entry.update(num_groups=matrix.num_groups, kept_share=matrix.kept_share)
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]  # tuples become lists

    def _summary(self) -> dict[str, Any]:
        """Return the pruning ratio, the number of kept weights, and which sublayers are dropped."""
        sublayers = [
            {"layer": layer, **{name: "dropped" if self.is_dropped(layer, name) else "kept" for name in SUBLAYERS}}
            for layer in range(self.num_layers)
        ]
        return {"pruning_ratio": self.pruning_ratio, "kept_parameters": self.kept_parameters, "sublayers": sublayers}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PruningPlan:
        """Return the plan in a dictionary made by :meth:`to_dict` and possibly edited by hand.

        The index lists take precedence: ``[]`` removes a matrix, ``null`` keeps it dense. ``summary`` and
        ``kept_share`` are ignored; ``num_groups``, if present, must agree with the lists.

        Raises:
            ValueError: If an entry is missing, unknown or invalid, or the plan has another ``schema_version``.
        """
        try:
            entries = plain["matrices"]
            _check_version(plain["schema_version"])
            values = _known_fields(cls, plain, "the plan", derived=("summary",))
            return cls(**values | {"matrices": tuple(map(_matrix_from_dict, entries))})
        except KeyError as error:
            raise ValueError(f"not a pruning plan: {error} is missing.") from error
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a pruning plan: {str(error).rstrip('.')}.") from error

    def to_json(self) -> str:
        """Return the plan as JSON text: the summary first, then one matrix per line."""
        plain = self.to_dict()
        plain = {"summary": plain.pop("summary"), **plain}
        matrices = ",\n    ".join(json.dumps(entry, separators=(",", ":")) for entry in plain.pop("matrices"))
        head = json.dumps(plain, indent=2)[:-2]
        return f'{head},\n  "matrices": [\n    {matrices}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Return the plan in a text made by :meth:`to_json`.

        Raises:
            ValueError: If the text is not JSON, or not a plan.
        """
        return cls.from_dict(json.loads(text))

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, atomically."""
        write_atomically(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan from a JSON file.

        Raises:
            ValueError: If the file cannot be read or holds no valid plan; the message names it.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{str(path)!r} cannot be read as a plan: {error.strerror}.") from error
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is not a valid plan: {error}") from error


def _check_version(version: Any) -> None:
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version={version!r} is not supported: this release of pgb-lightning reads version "
            f"{SCHEMA_VERSION}. Use the release that wrote the plan, or prune again."
        )


def _known_fields(record: type, entry: Mapping[str, Any], what: str, derived: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a stored record without the derived ones.

    Raises:
        ValueError: If there is an unknown field, such as a misspelled one.
    """
    known = [field.name for field in fields(record)]
    if unknown := sorted(set(entry) - {*known, *derived}):
        raise ValueError(
            f"{what} has the unknown field {unknown[0]!r}. Correct or remove it; the fields are {', '.join(known)}."
        )
    return {name: value for name, value in entry.items() if name not in derived}


def _matrix_from_dict(entry: Mapping[str, Any]) -> MatrixPlan:
    name = f"layer {entry.get('layer', '?')} {entry.get('kind', '?')}"
    values = _known_fields(MatrixPlan, entry, name, derived=("num_groups", "kept_share"))
    index = {key: as_tuples(f"{name}: {key}", entry[key]) for key in ("input_index", "output_index")}
    matrix = MatrixPlan(**values | index)
    if entry.get("num_groups", matrix.num_groups) != matrix.num_groups:
        raise ValueError(
            f"{matrix}: num_groups={entry['num_groups']} contradicts input_index, which has {matrix.num_groups} "
            "blocks. Edit the index lists ([] removes the matrix, null keeps it dense) and leave num_groups out."
        )
    return matrix
