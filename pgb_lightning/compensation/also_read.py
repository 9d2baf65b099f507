"""Inputs that a matrix reads besides hidden states, such as DeBERTa's embeddings of relative positions.

They are the same in the dense and in the pruned model. If they were ignored, a matrix would be refitted to the hidden
states alone, and its outputs for these inputs would be wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pgb_lightning.calibration.moments import AllReduce, Moments
from pgb_lightning.compensation.ridge import SplitMoments, held_out_samples
from pgb_lightning.compensation.streams import Stream


def add_further_inputs(
    moments: SplitMoments,
    inputs: Moments,
    read: Callable[[Tensor], tuple[Tensor, Tensor] | None],
    streams: Iterable[Stream],
    all_reduce: AllReduce,
) -> tuple[SplitMoments, Moments]:
    """Return the moments of a matrix with its further inputs added, which are their own targets.

    Args:
        moments: Moments of the hidden states in the pruned and in the dense model, finished.
        inputs: Moments of the hidden states in the dense model alone, finished.
        read: Takes a batch's mask of real tokens, and returns the further inputs and how many times each counts.
        streams: The calibration samples.
        all_reduce: Sums a tensor over the processes that share the calibration.
    """
    device = moments.all.mean_x.device
    found = read(torch.zeros(0, 1, dtype=torch.bool, device=device))
    if found is None:
        return moments, inputs
    rows, none = found
    counts = torch.stack([none, none]).double()
    for stream in streams:
        tokens, held = stream.tokens.to(device), held_out_samples(stream.tokens).to(device)
        for number, samples in enumerate((~held, held)):
            found = read(tokens[samples])
            assert found is not None  # it depends only on the model
            counts[number] += found[1]
    counts = all_reduce(counts)
    merged = copy.copy(moments)
    merged.fitted = moments.fitted.merged(_of_rows(moments.fitted, rows, counts[0]))
    if moments.held is not None:
        merged.held = moments.held.merged(_of_rows(moments.held, rows, counts[1]))
    merged.all = moments.all.merged(_of_rows(moments.all, rows, counts.sum(0)))
    return merged, inputs.merged(_of_rows(inputs, rows, counts.sum(0)))


def _of_rows(like: Moments, rows: Tensor, counts: Tensor) -> Moments:
    """Return the moments of inputs that are their own targets, finished.

    Args:
        like: Moments with the same blocks as the result.
        rows: The inputs, (R, M).
        counts: How many times each input counts, (R,).
    """
    made, total = copy.copy(like), counts.sum().view(1)
    rows = rows.double()
    made.mean_x = (counts @ rows) / total.clamp_min(1e-30)
    made.mean_y = made.mean_x[: len(like.mean_y)]
    centered = rows - made.mean_x
    gram = centered.T @ (counts.view(-1, 1) * centered)
    made.gram = gram.unsqueeze(0)
    made.cross = made.gram[..., : like.cross.shape[-1]]
    made.total_squares = made.cross.diagonal(dim1=1, dim2=2).sum().view(1)
    made.count = total
    return made
