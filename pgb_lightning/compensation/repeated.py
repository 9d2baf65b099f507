"""The fit of a layer that runs several times, so that its inputs depend on the fitted weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

from torch import Tensor, nn

from pgb_lightning.calibration.moments import AllReduce
from pgb_lightning.compensation.errors import FitErrors, relative_error
from pgb_lightning.compensation.streams import Stream
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS

#: Maximum number of fits of a layer that runs several times. In our measurements, a fourth fit changed almost nothing.
MAX_FITS = 3


def fit_runs(
    encoder: Encoder,
    layer: int,
    original: nn.Module,
    streams: list[Stream],
    fit: Callable[[list[Stream]], None],
    all_reduce: AllReduce,
    errors: FitErrors | None,
) -> None:
    """Fit a layer to all of its runs, and advance the streams to the states after them.

    The first fit uses the dense model's inputs of each run. Each further fit uses the inputs that the pruned model has
    with the weights of the previous fit, as long as the states after all runs get closer to the dense model's. The best
    fit is kept.

    Args:
        encoder: The encoder, in which the layer is pruned already.
        layer: Layer index.
        original: A copy of the layer before pruning.
        streams: The streams, before the first run.
        fit: Refits the layer to streams, one for each run.
        all_reduce: Sums a tensor over the processes that share the calibration.
        errors: The errors that ``fit`` records, if any.
    """
    steps = [step for step, number in enumerate(encoder.order) if number == layer]
    for stream in streams:
        stream.go_to(encoder, steps[0])
    targets = [states_of_runs(encoder, original, stream, stream.dense, steps) for stream in streams]
    # The input of the first run does not depend on the fit.
    inputs = [[stream.pruned, *dense[1:]] for stream, dense in zip(streams, targets, strict=True)]
    best, kept, ends = math.inf, _copy_of(encoder.layers[layer]), [states[-1] for states in inputs]
    for _ in range(MAX_FITS):
        recorded = copy.deepcopy(errors)
        fit([run for parts in zip(streams, targets, inputs, strict=True) for run in runs_between(*parts, steps)])
        inputs = [states_of_runs(encoder, encoder.layers[layer], stream, stream.pruned, steps) for stream in streams]
        pairs = (
            (own[stream.tokens], dense[stream.tokens])
            for stream, after, wanted in zip(streams, inputs, targets, strict=True)
            for own, dense in zip(after[1:], wanted[1:], strict=True)  # the first states are before all runs
        )
        error = relative_error(pairs, encoder.hidden_size, encoder.model.device, all_reduce)
        if error >= best:
            for name, value in encoder.layers[layer].state_dict().items():
                value.copy_(kept[name])
            if errors is not None and recorded is not None:
                errors.matrices, errors.sublayers = recorded.matrices, recorded.sublayers
            break
        best, kept, ends = error, _copy_of(encoder.layers[layer]), [states[-1] for states in inputs]
    for stream, dense, end in zip(streams, targets, ends, strict=True):
        stream.dense, stream.pruned = dense[-1], end


def runs_between(stream: Stream, dense: list[Tensor], own: list[Tensor], steps: list[int]) -> list[Stream]:
    """Return a stream for each run, given the states before each run, and after the last."""
    runs = []
    for number, step in enumerate(steps):
        runs.append(copy.copy(stream))
        runs[-1].step, runs[-1].dense, runs[-1].pruned = step, dense[number], own[number]
    return runs


def states_of_runs(
    encoder: Encoder, layer: nn.Module, stream: Stream, hidden: Tensor, steps: list[int]
) -> list[Tensor]:
    """Return the states of a stream before each run of a layer, and after the last."""
    states = []
    for step in steps:
        stream.step = step
        if step > steps[0]:
            hidden, _ = stream.pass_on(encoder, step - 1, hidden, hidden)
        states.append(hidden)
        for name in SUBLAYERS:
            hidden = stream.run(encoder, layer, name, hidden)
    return [*states, hidden]


def _copy_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}
