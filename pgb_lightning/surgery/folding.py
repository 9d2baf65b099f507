"""Folding: make permutations inside a sublayer part of the weights, so that they cost nothing at run time.

The neurons of a feed-forward network and the heads of attention can be stored in any order, and those that no block of
the closing matrix reads need not be computed. At the input and output of a sublayer, the residual stream fixes the
order. (The paper says that permutations fold or cancel, Section 4; here they are folded as far as possible.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pgb_lightning.encoders.family import KEY_VALUE, Sublayer
from pgb_lightning.plan import Index, MatrixPlan, PruningPlan

#: Inner features of a sublayer (neurons, or features of heads) in order; ``None`` if all are kept in their order.
Hidden = tuple[int, ...] | None


@dataclass(frozen=True)
class Folded:
    """A sublayer's part of a plan, with its inner features in the cheapest order.

    Args:
        hidden: The inner features of the dense sublayer that are kept, in their new order; ``None`` if all are kept in
            their original order.
        matrices: The plan of each matrix for the new order. A matrix can be smaller than in the dense encoder, and is
            dense if it connects all kept features.
        key_value: The kept inner features of keys and values, which may have fewer heads than queries.
    """

    hidden: Hidden
    matrices: Mapping[str, MatrixPlan]
    key_value: Hidden = None

    def features(self, kind: str) -> Hidden:
        """Return the inner features that are kept of a matrix."""
        return self.key_value if kind in KEY_VALUE else self.hidden


def fold(matrices: Iterable[MatrixPlan], sublayer: Sublayer, attention_unit: int) -> Folded:
    """Fold the permutations of a sublayer as far as possible.

    Neurons are sorted by the groups of W1, so that its outputs need no scatter. W2's inputs need no gather if its
    groups equal those of W1, contain them, or lie inside them. Neurons and whole heads that no block of the closing
    matrix reads are removed, if the model permits it.

    Args:
        matrices: The plans of the sublayer's matrices, for the dense model's order.
        sublayer: The sublayer.
        attention_unit: Features of attention that are removed together
            (:attr:`~pgb_lightning.encoders.base.Encoder.attention_unit`).

    Returns:
        The structure to build.
    """
    by_kind = {matrix.kind: matrix for matrix in matrices}
    *opening, closing = by_kind
    last = by_kind[closing]
    if last.num_groups == 0:
        return Folded(None, by_kind)
    everything = range(last.rows)
    unit = attention_unit if sublayer == "attention" else 1
    units = {feature // unit for feature in _flat(last.input_index, last.rows)}
    hidden = tuple(feature for feature in everything if feature // unit in units)
    shares = {kind: last.rows // by_kind[kind].columns for kind in opening}  # query heads for each head
    kept = {kind: _of_units(units, unit // share) if share > 1 else hidden for kind, share in shares.items()}
    if not all(_keeps_equal_blocks(by_kind[kind].output_index, set(kept[kind])) for kind in opening):
        hidden = tuple(everything)
        kept = {kind: tuple(range(by_kind[kind].columns)) for kind in opening}
    if sublayer == "ffn":
        hidden = _sort_by_group(hidden, by_kind[opening[0]].output_index, last.input_index)
        kept = dict.fromkeys(opening, hidden)
    folded = {}
    for kind in opening:
        matrix = by_kind[kind]
        columns, rows = _reindex(matrix.output_index, matrix.input_index, _positions(kept[kind]))
        folded[kind] = _simplify(replace(matrix, columns=len(kept[kind]), input_index=rows, output_index=columns))
    rows, columns = _reindex(last.input_index, last.output_index, _positions(hidden))
    folded[closing] = _simplify(replace(last, rows=len(hidden), input_index=rows, output_index=columns))
    if hidden == tuple(everything):
        return Folded(None, folded)
    return Folded(hidden, folded, kept[opening[-1]])


def fold_plan(plan: PruningPlan, attention_unit: int, fold_orders: bool = True) -> list[tuple[int, Sublayer, Folded]]:
    """Fold every sublayer of a plan.

    Args:
        plan: The plan.
        attention_unit: Features of attention that are removed together.
        fold_orders: Whether permutations are folded; if not, the matrices are those of the plan.

    Returns:
        Layer index, sublayer and the structure to build, in order.
    """
    parts = []
    for layer in range(plan.num_layers):
        for sublayer, kinds in plan.sublayers.items():
            matrices = {kind: plan.matrix(layer, kind) for kind in kinds}
            folded = fold(matrices.values(), sublayer, attention_unit) if fold_orders else Folded(None, matrices)
            parts.append((layer, sublayer, folded))
    return parts


def _of_units(units: Iterable[int], size: int) -> tuple[int, ...]:
    """Return the features of the given units, each of ``size`` features."""
    return tuple(unit * size + feature for unit in sorted(units) for feature in range(size))


def _positions(features: Iterable[int]) -> dict[int, int]:
    """Return the new position of each feature."""
    return {feature: new for new, feature in enumerate(features)}


def _flat(index: Index, size: int) -> list[int]:
    return list(range(size)) if index is None else [position for block in index for position in block]


def _keeps_equal_blocks(index: Index, kept: set[int]) -> bool:
    """Return whether all blocks still have the same size if only some outputs are kept."""
    sizes = {len(kept.intersection(block)) for block in index or ()}
    return len(sizes) <= 1 and 0 not in sizes


def _sort_by_group(hidden: tuple[int, ...], written: Index, read: Index) -> tuple[int, ...]:
    """Sort neurons by the groups that write (W1) and read (W2) them, with the larger groups as the first key."""
    writer, reader = _group_of(written), _group_of(read)
    pairs = len({(writer.get(n), reader.get(n)) for n in hidden})
    # If every group of W1 lies inside one of W2, sorting by W2's groups keeps those of W1 contiguous.
    writers_within_readers = pairs == len({writer.get(n) for n in hidden})
    first, second = (reader, writer) if writers_within_readers else (writer, reader)
    last = len(hidden)  # for neurons in no group
    return tuple(sorted(hidden, key=lambda n: (first.get(n, last), second.get(n, last), n)))


def _group_of(index: Index) -> dict[int, int]:
    return {position: number for number, block in enumerate(index or ()) for position in block}


def _reindex(inner: Index, outer: Index, position: Mapping[int, int]) -> tuple[Index, Index]:
    """Re-index blocks for the new order of the inner features, and sort them in this order."""
    if not inner or not outer:
        return inner, outer
    moved = (tuple(sorted(position[n] for n in block if n in position)) for block in inner)
    blocks = sorted(zip(moved, map(tuple, map(sorted, outer)), strict=True))
    return tuple(block[0] for block in blocks), tuple(block[1] for block in blocks)


def _simplify(matrix: MatrixPlan) -> MatrixPlan:
    """Mark a matrix as dense if it is one block of all its rows and columns."""
    if matrix.num_groups == 1 and matrix.kept_parameters == matrix.total_parameters:
        return replace(matrix, input_index=None, output_index=None)
    return matrix
