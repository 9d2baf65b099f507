"""The pruning plan: the contract between deciding and doing, and a JSON file a person can read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pgb_lightning.encoders.base import EXPENDABLE, MATRICES, SUBLAYERS, Sublayer

#: Raised whenever the meaning of a stored plan changes.
SCHEMA_VERSION = 1

#: G index lists, one a block; ``None`` stands for "all of them, in order": the matrix is kept whole.
Index = tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True)
class MatrixPlan:
    """What becomes of one weight matrix W in R^{M x N} (rows are inputs).

    Args:
        layer: Number of the layer, from 0.
        kind: One of Q, K, V, O, W1, W2.
        rows: M, the inputs.
        columns: N, the outputs.
        input_index: The rows of each block (π_r, cut into G parts); ``()`` if the matrix is pruned whole,
            ``None`` if it is kept whole.
        output_index: The columns of each block (π_c), likewise.
        importance_kept: Share of the matrix's importance that lies in the blocks, in [0, 1].
        predicted_error: Rise of the loss that the removed weights predict; ``None`` where nobody measured it. Under
            ``search="groups"`` half their importance summed up (Eq. 2), before compensation; under ``"shapes"``
            what is left after it, a sublayer's neurons or heads counted at its closing matrix.

    Raises:
        ValueError: The blocks overlap, are of unequal size, or lie outside the matrix.
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
                raise TypeError(f"{name}={value!r} must be a number")
        if self.kind not in MATRICES:
            raise ValueError(f"{self}: kind={self.kind!r} is unknown; it is one of {', '.join(MATRICES)}.")
        if (self.input_index is None) != (self.output_index is None):
            raise ValueError(f"{self}: input_index and output_index must both be given, or both be null.")
        if self.input_index is None or self.output_index is None:
            return
        if len(self.input_index) != len(self.output_index):
            raise ValueError(f"{self}: {len(self.input_index)} blocks of rows but {len(self.output_index)} of columns.")
        _check_blocks(f"{self}: input_index", self.input_index, self.rows)
        _check_blocks(f"{self}: output_index", self.output_index, self.columns)

    def __str__(self) -> str:
        return f"layer {self.layer} {self.kind}"

    @property
    def num_groups(self) -> int:
        """G: 0 if the matrix is pruned whole, 1 if it is kept whole or is one smaller block."""
        return 1 if self.input_index is None else len(self.input_index)

    @property
    def total_parameters(self) -> int:
        """M · N, the weights of the dense matrix."""
        return self.rows * self.columns

    @property
    def kept_share(self) -> float:
        """Share of the matrix's weights in the blocks."""
        return self.kept_parameters / self.total_parameters

    @property
    def kept_parameters(self) -> int:
        """Weights in the blocks."""
        if self.input_index is None or self.output_index is None:
            return self.total_parameters
        return sum(len(rows) * len(columns) for rows, columns in zip(self.input_index, self.output_index, strict=True))


@dataclass(frozen=True)
class PruningPlan:
    """What becomes of every matrix of an encoder: frozen, versioned, JSON-able.

    Args:
        model_type: The transformers ``model_type`` the plan was made for.
        matrices: One entry for every layer and matrix kind, in order.
        config: The settings the plan was made with (:meth:`PruningConfig.to_dict`); a record, never read back.
        num_samples: Calibration samples behind the plan.
        fingerprint: Hash of the dense weights the plan was made for, as returned by
            :func:`~pgb_lightning.encoders.fingerprint.fingerprint`; empty if unknown.
        schema_version: Version of this record's meaning.

    Raises:
        ValueError: The entries do not form whole layers, or a dropped sublayer keeps a matrix.

    Example:
        >>> whole = [MatrixPlan(0, kind, 8, 8, None, None) for kind in ("Q", "K", "V", "O", "W1", "W2")]
        >>> plan = PruningPlan("bert", tuple(whole))
        >>> PruningPlan.from_json(plan.to_json()) == plan
        True
    """

    model_type: str
    matrices: tuple[MatrixPlan, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    num_samples: int = 0
    fingerprint: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check_version(self.schema_version)
        if not isinstance(self.config, Mapping):
            raise TypeError(f"config={self.config!r} must be a mapping")
        found = [(matrix.layer, matrix.kind) for matrix in self.matrices]
        expected = [(layer, kind) for layer in range(self.num_layers) for kind in MATRICES]
        if not found or found != expected:
            raise ValueError(
                f"matrices must list {', '.join(MATRICES)} for every layer in order, at least one layer; "
                f"the plan lists {len(found)} matrices."
            )
        for layer in range(self.num_layers):
            for kinds in SUBLAYERS.values():
                gates = [kind for kind in kinds if kind not in EXPENDABLE]
                dead = [kind for kind in gates if self.matrix(layer, kind).num_groups == 0]
                alive = [kind for kind in kinds if self.matrix(layer, kind).num_groups > 0]
                if dead and alive:
                    raise ValueError(
                        f"layer {layer}: {dead[0]} is pruned whole, so its sublayer only adds a constant, but "
                        f"{alive[0]} is kept; prune {', '.join(kinds)} together."
                    )

    @property
    def num_layers(self) -> int:
        """Layers of the encoder."""
        return len(self.matrices) // len(MATRICES)

    def matrix(self, layer: int, kind: str) -> MatrixPlan:
        """Return the entry of one matrix."""
        return self.matrices[layer * len(MATRICES) + MATRICES.index(kind)]

    def is_dropped(self, layer: int, sublayer: Sublayer) -> bool:
        """Tell whether a whole sublayer becomes LayerNorm(x + bias')."""
        return all(self.matrix(layer, kind).num_groups == 0 for kind in SUBLAYERS[sublayer])

    @property
    def total_parameters(self) -> int:
        """Weights of the dense encoder's six matrix kinds (biases, embeddings and heads are not counted)."""
        return sum(matrix.total_parameters for matrix in self.matrices)

    @property
    def kept_parameters(self) -> int:
        """Weights in all blocks."""
        return sum(matrix.kept_parameters for matrix in self.matrices)

    @property
    def pruning_ratio(self) -> float:
        """The share of weights that the plan removes."""
        return 1 - self.kept_parameters / self.total_parameters

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON primitives, with what follows from it for a reader's convenience."""
        plain = {**asdict(self), "config": dict(self.config), "summary": self._summary()}
        for entry, matrix in zip(plain["matrices"], self.matrices, strict=True):
            entry.update(num_groups=matrix.num_groups, kept_share=matrix.kept_share)
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]  # tuples become lists

    def _summary(self) -> dict[str, Any]:
        """Say how much is removed, and what becomes of each sublayer."""
        fates = [
            {name: "dropped" if self.is_dropped(layer, name) else "kept" for name in SUBLAYERS}
            for layer in range(self.num_layers)
        ]
        sublayers = [{"layer": layer, **fate} for layer, fate in enumerate(fates)]
        return {"pruning_ratio": self.pruning_ratio, "kept_parameters": self.kept_parameters, "sublayers": sublayers}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PruningPlan:
        """Rebuild a plan from :meth:`to_dict`, which a person may have edited.

        The index lists count: ``[]`` prunes a matrix whole, ``null`` keeps it whole. ``summary`` and ``kept_share``
        are not read; ``num_groups`` must agree with the lists where it is there.

        Raises:
            ValueError: An entry is missing, unknown or does not make sense, or a newer release wrote the plan.
        """
        try:
            entries = plain["matrices"]
            _check_version(plain["schema_version"])
            values = _known(cls, plain, "the plan", derived=("summary",))
            return cls(**values | {"matrices": tuple(map(_matrix_from_dict, entries))})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a pruning plan: {error}.") from error

    def to_json(self) -> str:
        """Return the plan as JSON text, the summary first, then one matrix a line."""
        plain = self.to_dict()
        plain = {"summary": plain.pop("summary"), **plain}
        matrices = ",\n    ".join(json.dumps(entry, separators=(",", ":")) for entry in plain.pop("matrices"))
        head = json.dumps(plain, indent=2)[:-2]
        return f'{head},\n  "matrices": [\n    {matrices}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Rebuild a plan from :meth:`to_json`.

        Raises:
            ValueError: The text is no JSON, or no plan.
        """
        return cls.from_dict(json.loads(text))

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, in one step: whoever reads the file meets a whole plan or none."""
        unfinished = Path(f"{path}.{os.getpid()}.tmp")
        try:
            unfinished.write_text(self.to_json(), encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan from a JSON file.

        Raises:
            ValueError: There is no such file, or it holds no plan; the message names it.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{str(path)!r} cannot be read as a plan: {error.strerror}.") from error
        except ValueError as error:
            raise ValueError(f"{str(path)!r} holds no plan that can be carried out: {error}") from error


def _check_version(version: Any) -> None:
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version={version!r}: this release of pgb-lightning reads plans of version {SCHEMA_VERSION}; use "
            "the release that wrote the plan, or prune again."
        )


def _known(record: type, entry: Mapping[str, Any], what: str, derived: tuple[str, ...]) -> dict[str, Any]:
    """Return a stored record's fields without what is derived from them.

    Raises:
        ValueError: There is a field that this release does not know, such as a misspelt one.
    """
    known = [field.name for field in fields(record)]
    if unknown := sorted(set(entry) - {*known, *derived}):
        raise ValueError(f"{what} has the unknown field {unknown[0]!r}; known are {', '.join(known)}.")
    return {name: value for name, value in entry.items() if name not in derived}


def _matrix_from_dict(entry: Mapping[str, Any]) -> MatrixPlan:
    values = _known(MatrixPlan, entry, "a matrix", derived=("num_groups", "kept_share"))
    index = {name: _frozen(entry[name]) for name in ("input_index", "output_index")}
    matrix = MatrixPlan(**{**values, **index})
    if entry.get("num_groups", matrix.num_groups) != matrix.num_groups:
        raise ValueError(
            f"{matrix}: num_groups={entry['num_groups']} contradicts input_index, which has {matrix.num_groups} "
            "blocks; edit the index lists ([] prunes the matrix whole, null keeps it whole) and leave num_groups out."
        )
    return matrix


def _frozen(index: list[list[int]] | None) -> Index:
    frozen = None if index is None else tuple(tuple(block) for block in index)
    if any(type(position) is not int for block in frozen or () for position in block):
        raise TypeError("index lists must hold lists of whole numbers")
    return frozen


def _check_blocks(name: str, index: tuple[tuple[int, ...], ...], size: int) -> None:
    """Require equal, disjoint blocks of positions in range(size)."""
    flat = [position for block in index for position in block]
    if len({len(block) for block in index}) > 1 or any(not block for block in index):
        raise ValueError(f"{name} must have blocks of one size, at least 1.")
    if len(set(flat)) != len(flat):
        raise ValueError(f"{name} lists a position twice; blocks must be disjoint.")
    if flat and not 0 <= min(flat) <= max(flat) < size:
        raise ValueError(f"{name} has a position outside 0..{size - 1}.")
