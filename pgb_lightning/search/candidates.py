"""The candidate shapes of every sublayer, each with its predicted increase of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.calibration.importance import second_order_importance
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import EXPENDABLE, Sublayer
from pgb_lightning.grouping.compensated import assign_columns, compensated_groups, obs_saliency
from pgb_lightning.grouping.group_numbers import allowed_groups
from pgb_lightning.grouping.permutation import group
from pgb_lightning.plan import Index, MatrixPlan
from pgb_lightning.prediction.elimination import block_loss, eliminate, unit_indices
from pgb_lightning.prediction.quadratic import QuadraticModel
from pgb_lightning.search.widths import has_multiples, width_step
from pgb_lightning.shapes import Dropped, Groups, Heads, Neurons, Shape

#: Fractions of the neurons that are also tried in groups.
GROUPED_FRACTIONS = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Candidate:
    """A shape for one sublayer, with the plan of its matrices.

    Args:
        layer: Layer index.
        sublayer: The sublayer.
        shape: The shape.
        matrices: The plan of each matrix; their ``predicted_error`` sum to :attr:`loss`.
    """

    layer: int
    sublayer: Sublayer
    shape: Shape
    matrices: tuple[MatrixPlan, ...]

    @property
    def loss(self) -> float:
        """Predicted increase of the loss, after compensation."""
        return sum(matrix.predicted_error or 0.0 for matrix in self.matrices)

    @property
    def parameters(self) -> int:
        """Weights that are kept."""
        return sum(matrix.kept_parameters for matrix in self.matrices)


#: Returns the cost of a candidate, in the unit of the budget.
CandidateCost = Callable[[Candidate], float]


def list_candidates(encoder: Encoder, statistics: Calibration, config: PruningConfig) -> list[list[Candidate]]:
    """List the candidates of every sublayer, in order. They do not depend on the pruning ratio.

    Args:
        encoder: The encoder that ``statistics`` belong to.
        statistics: The calibration, moments included.
        config: G_max, N_perm, the permutation, the ridge and ``width_multiple``.

    Returns:
        The candidates of each sublayer, starting with the one that leaves it unchanged. This is the only one for a
        sublayer that an earlier pruning dropped.

    Raises:
        ValueError: If the statistics lack moments.
    """
    found: list[list[Candidate]] = []
    for layer in range(encoder.num_layers):
        for sublayer, kinds in encoder.sublayers.items():
            if encoder.is_dropped(layer, sublayer):
                sizes = {kind: encoder.matrix_size(kind, 0) for kind in kinds}
                gone = tuple(MatrixPlan(layer, kind, *sizes[kind], (), (), predicted_error=0.0) for kind in kinds)
                found.append([Candidate(layer, sublayer, Dropped(), gone)])
                continue
            matrices = {kind: _Matrix.from_calibration(encoder, statistics, config, layer, kind) for kind in kinds}
            if sublayer == "attention":
                listed = _attention(matrices, layer, encoder.head_group)
            else:
                listed = _feed_forward(matrices, layer, config.width_multiple)
            multiple = config.width_multiple
            found.append([each for each in listed if all(has_multiples(one, multiple) for one in each.matrices)])
    return found


class _Matrix(QuadraticModel):
    """A dense matrix with its quadratic model, and the plans for it."""

    def plan(self, rows: Tensor, columns: Tensor, loss: float) -> MatrixPlan:
        """Keep blocks of rows (G, m) and columns (G, n)."""
        return self._plan(tuple(map(tuple, rows.tolist())), tuple(map(tuple, columns.tolist())), loss)

    def keep(self) -> MatrixPlan:
        """Keep the matrix dense."""
        return self._plan(None, None, 0.0)

    def remove(self, loss: float) -> MatrixPlan:
        """Remove the matrix."""
        return self._plan((), (), loss)

    def _plan(self, rows: Index, columns: Index, loss: float) -> MatrixPlan:
        height, width = self.weight.shape
        return MatrixPlan(self.layer, self.kind, height, width, rows, columns, predicted_error=loss)

    def drop(self, loss: float) -> MatrixPlan:
        """Remove a closing matrix with its sublayer. A matrix without a bias is given one for its mean outputs."""
        return self.remove(loss if self.constant_loss is None else self.constant_loss)

    def narrow(self, rows: Tensor | None, columns: Tensor | None, loss: float) -> MatrixPlan:
        """Keep one block of some rows and columns; ``None`` keeps all."""
        rows, columns = self._or_all(rows, columns)
        return self.plan(rows.view(1, -1), columns.view(1, -1), loss)

    def grouped(
        self,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        weight: Tensor | None = None,
        before: float = 0.0,
        blocks: Mapping[int, Index] | None = None,
    ) -> Iterator[tuple[int, MatrixPlan]]:
        """Yield every group number above 1 for some rows and columns, with its plan.

        Args:
            rows: The rows that are kept; all if omitted.
            columns: The columns that are kept; all if omitted.
            weight: The weights, refitted to these rows and columns; those of the dense matrix if omitted.
            before: Predicted increase of the loss due to the rows and columns that are not kept.
            blocks: For each group number the rows of each block, if they are fixed.
        """
        rows, columns = self._or_all(rows, columns)
        weight = self.weight[rows][:, columns] if weight is None else weight
        covariance, outputs = self.covariance[rows][:, rows], self.output_curvature()[columns]
        carried = covariance @ weight
        permutation, sorts = self.config.permutation, self.config.num_permutations
        if permutation == "compensated" and blocks is None:
            importance = obs_saliency(covariance, weight, outputs)
        else:
            importance = second_order_importance(weight, self.fisher[rows][:, columns])
        for number in allowed_groups(len(rows), len(columns), self.config.max_groups)[1:]:
            if blocks is not None:
                given = torch.searchsorted(rows, torch.tensor(blocks[number], device=rows.device))
                groups = assign_columns(covariance, carried, outputs, given)
            elif permutation == "compensated":
                groups = compensated_groups(covariance, carried, outputs, importance, number, sorts)
            else:
                groups = group(importance, number, permutation, sorts)
            loss = before + block_loss(covariance, weight, carried, outputs, groups.rows, groups.columns)
            yield number, self.plan(rows[groups.rows], columns[groups.columns], loss)

    def _or_all(self, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return all rows or columns if none are given."""
        height, width = (torch.arange(size, device=self.weight.device) for size in self.weight.shape)
        return height if rows is None else rows, width if columns is None else columns


def _feed_forward(matrices: dict[str, _Matrix], layer: int, multiple: int) -> Iterator[Candidate]:
    """Yield the candidates with some neurons, with some neurons in groups, and without any."""
    *opening, closing = matrices.values()
    total = len(closing.weight)
    step = width_step(total, multiple)
    grouped = tuple(round((1 - fraction) * total / step) * step for fraction in GROUPED_FRACTIONS)
    found = eliminate(closing.covariance, closing.weight, closing.gradient, step=max(step // 2, 1), keep=grouped)
    for count, loss in zip(found.counts, found.losses, strict=True):
        kept, left = found.kept_units(count), total - count
        if count % step and left:
            continue
        if not left:
            dropped = (*(matrix.remove(0.0) for matrix in opening), closing.drop(loss))
            yield Candidate(layer, "ffn", Dropped(), dropped)
            continue
        ones = (*(matrix.keep() for matrix in opening), closing.keep())
        if count:
            ones = (*(matrix.narrow(None, kept, 0.0) for matrix in opening), closing.narrow(kept, None, loss))
        yield Candidate(layer, "ffn", Neurons(left), ones)
        if count in found.weights:
            # Both opening matrices of a gated network have the same group number.
            first = {1: ones[:-1]}
            for plans in zip(*(matrix.grouped(columns=kept) for matrix in opening), strict=True):
                first[plans[0][0]] = tuple(matrix for _, matrix in plans)
            second = {1: ones[-1], **dict(closing.grouped(rows=kept, weight=found.weights[count], before=loss))}
            shared: dict[int, MatrixPlan] = {}  # W2's plans whose groups of neurons are those of W1
            if closing.config.permutation == "compensated":
                blocks = {number: opened[0].output_index for number, opened in first.items() if number > 1}
                shared = dict(closing.grouped(rows=kept, weight=found.weights[count], before=loss, blocks=blocks))
            for (g1, opened), (g2, w2) in product(first.items(), second.items()):
                if (g1, g2) != (1, 1):
                    closed = shared.get(g2, w2) if g1 == g2 else w2
                    numbers = (*(g1 for _ in opened), g2)
                    yield Candidate(layer, "ffn", Groups(numbers, neurons=left), (*opened, closed))


def _attention(matrices: dict[str, _Matrix], layer: int, unit: int) -> Iterator[Candidate]:
    """Yield the candidates with all or some heads, without any, and in groups.

    Args:
        matrices: The matrices of the sublayer.
        layer: Layer index.
        unit: Features of the query heads that are removed together.
    """
    *opening, o = matrices.values()
    heads = len(o.weight) // unit
    yield Candidate(layer, "attention", Heads(heads), (*(matrix.keep() for matrix in opening), o.keep()))
    found = eliminate(o.covariance, o.weight, o.gradient, unit=unit)
    for count, loss in list(zip(found.counts, found.losses, strict=True))[1:-1]:
        units = found.kept_units(count)
        narrowed = (m.narrow(None, unit_indices(units, m.weight.shape[1] // heads), 0.0) for m in opening)
        last = o.narrow(unit_indices(units, unit), None, loss)
        yield Candidate(layer, "attention", Heads(heads - count), (*narrowed, last))
    dropped = (*(matrix.remove(0.0) for matrix in opening), o.drop(found.losses[-1]))
    yield Candidate(layer, "attention", Dropped(), dropped)
    yield from _grouped_attention(matrices, layer)


def _grouped_attention(matrices: dict[str, _Matrix], layer: int) -> Iterator[Candidate]:
    """Yield the candidates with groups, or without Q, K or both, in which attention is less selective."""
    options: dict[str, dict[int, MatrixPlan]] = {}
    for kind, matrix in matrices.items():
        options[kind] = {1: matrix.keep(), **dict(matrix.grouped())}
        if kind in EXPENDABLE:
            options[kind][0] = matrix.remove(matrix.removed_loss())
    for numbers in product(*options.values()):
        # Q and K have the same group number, or one of them is removed and the other is dense.
        scores = numbers[: len(EXPENDABLE)]
        one_removed = sorted(scores) == [0, 1] and matrices[EXPENDABLE[scores.index(0)]].has_bias
        if numbers != (1, 1, 1, 1) and (numbers[0] == numbers[1] or one_removed):
            chosen = tuple(options[kind][number] for kind, number in zip(options, numbers, strict=True))
            yield Candidate(layer, "attention", Groups(numbers), chosen)
