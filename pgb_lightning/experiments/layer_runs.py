"""The inputs on which a pruned layer is compared with the dense one, for layers that may run several times."""

from __future__ import annotations

from torch import nn

from pgb_lightning.compensation.repeated import runs_between, states_of_runs
from pgb_lightning.compensation.streams import Stream
from pgb_lightning.encoders.base import Encoder


def runs_of(encoder: Encoder, layer: int, original: nn.Module, streams: list[Stream]) -> list[Stream]:
    """Return the streams on which a layer is compared with the dense one: one for each run if it runs several times.

    The inputs of later runs depend on how the layer is pruned. Such a layer is compared on the inputs that the dense
    model has in all of its runs, and the streams then go on from the dense model's output.

    Args:
        encoder: The encoder.
        layer: Layer index.
        original: A copy of the layer before pruning.
        streams: The streams. Those of a layer that runs several times are moved past all of its runs.
    """
    steps = [step for step, number in enumerate(encoder.order) if number == layer]
    if len(steps) == 1:
        for stream in streams:
            stream.go_to(encoder, steps[0])
        return streams
    runs = []
    for stream in streams:
        stream.go_to(encoder, steps[0])
        states = states_of_runs(encoder, original, stream, stream.dense, steps)
        runs += runs_between(stream, states, states, steps)
        stream.dense = stream.pruned = states[-1]
    return runs
