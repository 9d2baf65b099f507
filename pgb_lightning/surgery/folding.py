"""Folding: which permutations cost nothing at run time, because they can be made part of the weights.

What lies between the two ends of a sublayer, the neurons of the feed-forward network and the heads of attention, is
nobody else's business: it may stand in any order, and what nobody reads need not be computed. (The paper says that
permutations fold or cancel, Section 4; this is how far that goes. At a sublayer's ends the residual stream fixes the
order.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pgb_lightning.encoders.base import SUBLAYERS, Sublayer
from pgb_lightning.plan import Index, MatrixPlan

#: Neurons, or features of heads, in order; ``None`` stands for "all of them, as they were".
Hidden = tuple[int, ...] | None


@dataclass(frozen=True)
class Folded:
    """A sublayer's part of a plan, with its inside in the order in which it costs least.

    Args:
        hidden: Which of the dense sublayer's neurons (or features of heads) are left, in their new order; ``None``
            if all are left as they were.
        matrices: The plan of each matrix in terms of the new inside. Matrices may be smaller than the dense ones; one
            that all neurons left enter or leave is whole.
    """

    hidden: Hidden
    matrices: Mapping[str, MatrixPlan]


def fold(matrices: Iterable[MatrixPlan], sublayer: Sublayer, attention_unit: int) -> Folded:
    """Fold a sublayer's permutations as far as they go.

    The neurons are put in the order of the groups of W1, so that its outputs need not be moved; nor need W2's inputs
    where its groups are those of W1, or lie within or around them. Neurons, and whole heads, that no group of the
    closing matrix reads are left out, where the model can do without them.

    Args:
        matrices: The plans of the sublayer's matrices, in terms of the dense model.
        sublayer: Which sublayer they are of.
        attention_unit: As in :class:`~pgb_lightning.encoders.base.Encoder`: how many features of attention are left
            out together.

    Returns:
        What to build.
    """
    *opening, closing = SUBLAYERS[sublayer]
    by_kind = {matrix.kind: matrix for matrix in matrices}
    last = by_kind[closing]
    if last.num_groups == 0:
        return Folded(None, by_kind)
    everything = range(last.rows)
    unit = attention_unit if sublayer == "attention" else 1
    units = {feature // unit for feature in _flat(last.input_index, last.rows)}
    hidden = tuple(feature for feature in everything if feature // unit in units)
    if not all(_stays_regular(by_kind[kind].output_index, set(hidden)) for kind in opening):
        hidden = tuple(everything)
    if sublayer == "ffn":
        hidden = _in_order_of_groups(hidden, by_kind["W1"].output_index, last.input_index)
    place = {feature: position for position, feature in enumerate(hidden)}
    folded = {}
    for kind in opening:
        matrix = by_kind[kind]
        columns, rows = _moved(matrix.output_index, matrix.input_index, place)
        folded[kind] = _built(replace(matrix, columns=len(hidden), input_index=rows, output_index=columns))
    rows, columns = _moved(last.input_index, last.output_index, place)
    folded[closing] = _built(replace(last, rows=len(hidden), input_index=rows, output_index=columns))
    return Folded(None if hidden == tuple(everything) else hidden, folded)


def _flat(index: Index, size: int) -> list[int]:
    return list(range(size)) if index is None else [position for block in index for position in block]


def _stays_regular(index: Index, kept: set[int]) -> bool:
    """Tell whether blocks are still of one size once only some outputs are left."""
    sizes = {len(kept.intersection(block)) for block in index or ()}
    return len(sizes) <= 1 and 0 not in sizes


def _in_order_of_groups(hidden: tuple[int, ...], written: Index, read: Index) -> tuple[int, ...]:
    """Sort neurons by the groups that write and read them, the larger groups first."""
    writer, reader = _labels(written), _labels(read)
    inside = len({(writer.get(n), reader.get(n)) for n in hidden})
    # Where every group of W1 lies within one of W2, sorting by W2's groups leaves W1's in one piece too.
    writers_within_readers = inside == len({writer.get(n) for n in hidden})
    first, second = (reader, writer) if writers_within_readers else (writer, reader)
    last = len(hidden)  # neurons in no group
    return tuple(sorted(hidden, key=lambda n: (first.get(n, last), second.get(n, last), n)))


def _labels(index: Index) -> dict[int, int]:
    return {position: number for number, block in enumerate(index or ()) for position in block}


def _moved(inner: Index, outer: Index, place: Mapping[int, int]) -> tuple[Index, Index]:
    """Say in terms of the new inside what blocks there are, in the order of their places in it."""
    if not inner or not outer:
        return inner, outer
    placed = (tuple(sorted(place[n] for n in block if n in place)) for block in inner)
    blocks = sorted(zip(placed, map(tuple, map(sorted, outer)), strict=True))
    return tuple(block[0] for block in blocks), tuple(block[1] for block in blocks)


def _built(matrix: MatrixPlan) -> MatrixPlan:
    """Keep whole what is one block of all its rows and columns."""
    if matrix.num_groups == 1 and matrix.kept_parameters == matrix.total_parameters:
        return replace(matrix, input_index=None, output_index=None)
    return matrix
