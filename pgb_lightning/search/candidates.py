"""The shapes that a sublayer can take, each with the rise of the loss that it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.calibration.importance import second_order_importance
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import EXPENDABLE, MATRICES, SUBLAYERS, Encoder, Sublayer
from pgb_lightning.grouping.compensated import assign_columns, compensated_groups, obs_saliency
from pgb_lightning.grouping.group_numbers import allowed_groups
from pgb_lightning.grouping.permutation import group
from pgb_lightning.plan import Index, MatrixPlan
from pgb_lightning.prediction.elimination import block_errors, eliminate, unit_indices
from pgb_lightning.prediction.quadratic import QuadraticModel

#: Widths of a feed-forward sublayer that are tried at least, where it has as many neurons.
WIDTHS = 48
#: Shares of the neurons that are tried with groups on top.
GROUPED_SHARES = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Candidate:
    """One shape of one sublayer.

    Args:
        layer: Number of the layer.
        sublayer: Which of its sublayers.
        shape: The shape in words.
        matrices: What becomes of each matrix; their ``predicted_error`` add up to ``loss``.
    """

    layer: int
    sublayer: Sublayer
    shape: str
    matrices: tuple[MatrixPlan, ...]

    @property
    def loss(self) -> float:
        """Predicted rise of the loss, after compensation."""
        return sum(matrix.predicted_error or 0.0 for matrix in self.matrices)

    @property
    def parameters(self) -> int:
        """Weights that are left."""
        return sum(matrix.kept_parameters for matrix in self.matrices)


#: What a candidate costs, in the unit of the budget.
CandidateCost = Callable[[Candidate], float]


def list_candidates(encoder: Encoder, statistics: Calibration, config: PruningConfig) -> list[list[Candidate]]:
    """List the candidates of every sublayer, in order; they do not depend on the pruning ratio.

    Args:
        encoder: The dense encoder that ``statistics`` are of.
        statistics: What calibration found, its moments included.
        config: G_max, N_perm, the permutation and the ridge.

    Returns:
        For each sublayer its candidates, the whole one first.

    Raises:
        ValueError: The statistics lack moments.
    """
    found: list[list[Candidate]] = []
    for layer in range(len(encoder.layers)):
        matrices = {kind: _Matrix.from_calibration(encoder, statistics, config, layer, kind) for kind in MATRICES}
        found.append(list(_attention(matrices, layer, encoder.head_size)))
        found.append(list(_feed_forward(matrices, layer)))
    return found


class _Matrix(QuadraticModel):
    """A dense matrix, and the plans that there are for it."""

    def plan(self, rows: Tensor | None, columns: Tensor | None, loss: float) -> MatrixPlan:
        """Keep blocks of rows (G, m) and columns (G, n), or everything."""
        r, c = (None if part is None else tuple(map(tuple, part.tolist())) for part in (rows, columns))
        height, width = self.weight.shape
        return MatrixPlan(self.layer, self.kind, height, width, r, c, predicted_error=loss)

    def whole(self) -> MatrixPlan:
        return self.plan(None, None, 0.0)

    def gone(self, loss: float) -> MatrixPlan:
        nothing = self.weight.new_zeros(0, 0, dtype=torch.long)
        return self.plan(nothing, nothing, loss)

    def narrow(self, rows: Tensor | None, columns: Tensor | None, loss: float) -> MatrixPlan:
        """Keep one block of some rows and columns, ``None`` standing for all."""
        rows, columns = self._sides(rows, columns)
        return self.plan(rows.view(1, -1), columns.view(1, -1), loss)

    def variance_losses(self) -> Tensor:
        """Return the rise of the loss if an output became its mean, output by output."""
        variances = (self.weight * (self.covariance @ self.weight)).sum(0)
        return variances * self.output_curvature() / 2

    def grouped(
        self,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        weight: Tensor | None = None,
        before: float = 0.0,
        blocks: Mapping[int, Index] | None = None,
    ) -> Iterator[tuple[int, MatrixPlan]]:
        """Try all group numbers above 1 on some rows and columns.

        ``weight`` is refitted to them, which has cost the loss ``before``; ``blocks`` has the rows of each block where
        these are not to be chosen.
        """
        rows, columns = self._sides(rows, columns)
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
            errors = block_errors(covariance, weight, carried, groups.rows, groups.columns)
            loss = before + float((errors * outputs).sum() / 2)
            yield number, self.plan(rows[groups.rows], columns[groups.columns], loss)

    def _sides(self, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Number all rows or columns where none are given."""
        height, width = (torch.arange(size, device=self.weight.device) for size in self.weight.shape)
        return height if rows is None else rows, width if columns is None else columns


def width_step(neurons: int) -> int:
    """Return by how many neurons the widths differ that are tried: a power of two, as hardware likes it.

    Example:
        >>> [width_step(neurons) for neurons in (4096, 3072, 1536, 512, 40)]
        [64, 64, 32, 8, 1]
    """
    return 1 << max((neurons // WIDTHS).bit_length() - 1, 0)


def _feed_forward(matrices: dict[str, _Matrix], layer: int) -> Iterator[Candidate]:
    """Keep some neurons, perhaps in groups, or nothing."""
    opening, closing = matrices["W1"], matrices["W2"]
    total = len(closing.weight)
    unit = width_step(total)
    grouped = tuple(round((1 - share) * total / unit) * unit for share in GROUPED_SHARES)
    found = eliminate(closing.covariance, closing.weight, closing.gradient, step=max(unit // 2, 1), keep=grouped)
    for count, loss in zip(found.counts, found.losses, strict=True):
        kept, left = found.kept_units(count), total - count
        if count % unit and left:
            continue
        if not left:
            yield Candidate(layer, "ffn", "dropped", (opening.gone(0.0), closing.gone(loss)))
            continue
        ones = (opening.whole(), closing.whole())
        if count:
            ones = (opening.narrow(None, kept, 0.0), closing.narrow(kept, None, loss))
        yield Candidate(layer, "ffn", f"{left} neurons", ones)
        if count in found.weights:
            first = {1: ones[0], **dict(opening.grouped(columns=kept))}
            second = {1: ones[1], **dict(closing.grouped(rows=kept, weight=found.weights[count], before=loss))}
            alike: dict[int, MatrixPlan] = {}
            if closing.config.permutation == "compensated":
                blocks = {number: matrix.output_index for number, matrix in first.items() if number > 1}
                alike = dict(closing.grouped(rows=kept, weight=found.weights[count], before=loss, blocks=blocks))
            for (g1, w1), (g2, w2) in product(first.items(), second.items()):
                if (g1, g2) != (1, 1):
                    closed = alike.get(g2, w2) if g1 == g2 else w2
                    yield Candidate(layer, "ffn", f"{left} neurons in {g1} and {g2} groups", (w1, closed))


def _attention(matrices: dict[str, _Matrix], layer: int, head: int) -> Iterator[Candidate]:
    """Keep some heads, or groups, or nothing."""
    q, k, v, o = (matrices[kind] for kind in SUBLAYERS["attention"])
    yield Candidate(layer, "attention", "whole", tuple(matrix.whole() for matrix in (q, k, v, o)))
    found = eliminate(o.covariance, o.weight, o.gradient, unit=head)
    for count, loss in list(zip(found.counts, found.losses, strict=True))[1:-1]:
        kept = unit_indices(found.kept_units(count), head)
        opening = (matrix.narrow(None, kept, 0.0) for matrix in (q, k, v))
        shape = f"{len(kept) // head} heads"
        yield Candidate(layer, "attention", shape, (*opening, o.narrow(kept, None, loss)))
    dropped = (*(matrix.gone(0.0) for matrix in (q, k, v)), o.gone(found.losses[-1]))
    yield Candidate(layer, "attention", "dropped", dropped)
    yield from _grouped_attention(matrices, layer)


def _grouped_attention(matrices: dict[str, _Matrix], layer: int) -> Iterator[Candidate]:
    """Cut each of the matrices into groups; or take Q, K or both away, after which attention is less selective."""
    options: dict[str, dict[int, MatrixPlan]] = {}
    for kind in SUBLAYERS["attention"]:
        matrix = matrices[kind]
        options[kind] = {1: matrix.whole(), **dict(matrix.grouped())}
        if kind in EXPENDABLE:
            options[kind][0] = matrix.gone(float(matrix.variance_losses().sum()))
    for numbers in product(*options.values()):
        # Q and K alike, or one of them alone.
        if numbers != (1, 1, 1, 1) and (numbers[0] == numbers[1] or sorted(numbers[:2]) == [0, 1]):
            chosen = tuple(options[kind][number] for kind, number in zip(options, numbers, strict=True))
            yield Candidate(layer, "attention", "groups " + ", ".join(map(str, numbers)), chosen)
