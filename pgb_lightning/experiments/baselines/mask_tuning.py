"""Scale the remaining heads and neurons so that each sublayer's output matches that of the dense model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pgb_lightning.calibration.collect import LayerInput
from pgb_lightning.compensation.streams import Stream, captured
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import Sublayer
from pgb_lightning.experiments.layer_runs import runs_of
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery.apply import prune_sublayer

#: Regularization of the masks toward 1, as a fraction of the mean diagonal.
RIDGE = 0.01
#: If a mask exceeds this magnitude, the problem has no stable solution, and the sublayer keeps its masks of 1.
LARGEST = 10.0


@torch.no_grad()
def tune_masks(encoder: Encoder, plan: PruningPlan, inputs: list[LayerInput]) -> None:
    """Carry out a plan sublayer by sublayer, and tune the masks of each sublayer to the dense model.

    The output of a sublayer is compared after the residual addition and before a LayerNorm that follows, so that the
    tuning also accounts for errors of earlier sublayers. The masks are multiplied into the sublayer's closing matrix.

    Args:
        encoder: The dense encoder, in eval mode; it is pruned in place.
        plan: The heads and neurons to keep.
        inputs: The first layer's inputs on the calibration samples.
    """
    streams = [Stream(given, encoder.model.device) for given in inputs]
    for layer in range(plan.num_layers):
        original = copy.deepcopy(encoder.layers[layer])
        runs = runs_of(encoder, layer, original, streams)
        for sublayer, kinds in encoder.sublayers.items():
            prune_sublayer(encoder, layer, sublayer, [plan.matrix(layer, kind) for kind in kinds])
            _tune(encoder, original, layer, sublayer, runs)
            for run in runs:
                run.pruned = run.run(encoder, encoder.layers[layer], sublayer, run.pruned)


def _tune(encoder: Encoder, original: nn.Module, layer: int, sublayer: Sublayer, streams: list[Stream]) -> None:
    """Advance the dense stream by one sublayer, and tune the pruned sublayer to it."""
    closing = encoder.matrix(layer, encoder.sublayers[sublayer][-1])
    dense = encoder.matrix_in(original, encoder.sublayers[sublayer][-1])
    # The kept heads or neurons are one block, of a smaller dense layer or of a grouped one (MPNet's heads).
    left = as_matrix(closing)
    is_kept = left.kept_weights().numel() > 0
    power: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for stream in streams:
        before = stream.dense
        with captured(dense) as calls:
            stream.dense = stream.run(encoder, original, sublayer, before)
        target = stream.real(calls[0][1] + before.to(stream.device) - stream.pruned.to(stream.device))
        if is_kept:
            with captured(closing) as calls:
                stream.run(encoder, encoder.layers[layer], sublayer, stream.pruned)
            read, given = (stream.real(part) for part in calls[0])
            read = read[:, left.index().rows[0]]
            power = power + (read.T @ read).double()
            cross = cross + (read.T @ (target - given)).double()
    if isinstance(power, Tensor) and isinstance(cross, Tensor) and is_kept:
        weight = left.kept_weights()[0]
        unit = encoder.head_group if sublayer == "attention" else 1
        masks = solve_masks(power, cross, weight.double(), unit)
        if masks.abs().max() <= LARGEST:
            weight.mul_(masks.repeat_interleave(unit).unsqueeze(1).to(weight))


def solve_masks(power: Tensor, missing: Tensor, weight: Tensor, unit: int, ridge: float = RIDGE) -> Tensor:
    """Solve for the masks m for which Σ over units of m_u x_u W_u is closest to a target in least squares.

    Args:
        power: XᵀX of the closing matrix's inputs, (M, M).
        missing: Xᵀ(target - X W), (M, N).
        weight: W, (M, N).
        unit: Number of neighboring inputs that share a mask.
        ridge: Regularization toward 1, as a fraction of the mean diagonal.

    Returns:
        The masks, one per unit.

    Example:
        >>> x, w = torch.eye(2, dtype=torch.double), torch.eye(2, dtype=torch.double)
        >>> solve_masks(x.T @ x, x.T @ (3 * x @ w - x @ w), w, unit=1, ridge=1e-9).round(decimals=6).tolist()
        [3.0, 3.0]
    """
    units = len(weight) // unit
    system = (power * (weight @ weight.T)).view(units, unit, units, unit).sum((1, 3))
    right = (missing * weight).sum(1).view(units, unit).sum(1)
    damping = (ridge * system.diagonal().mean()).clamp_min(1e-30)
    change: Tensor = torch.linalg.solve(system + damping * torch.eye(units).to(system), right)
    return 1 + change
