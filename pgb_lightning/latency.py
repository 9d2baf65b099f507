"""Measure latency: of functions in interleaved rounds, and of the layers of an encoder."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from pgb_lightning.config import LatencyRuntime
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.modes import eval_mode
from pgb_lightning.runtimes.channel_layers import use_channel_layers
from pgb_lightning.runtimes.loading import Run, load_modules

#: Number of timed calls in :func:`measure_fastest`. The fastest is used, since interference only makes calls slower.
NUM_CALLS = 5


def measure_latency(
    runs: Mapping[str, Callable[[], object]], repeats: int = 7, min_time: float = 0.2
) -> dict[str, list[float]]:
    """Measure several functions in interleaved rounds, so that changes in the machine's speed affect all of them.

    Args:
        runs: Functions by name. Each is warmed up first.
        repeats: Number of rounds. Every function is measured once per round.
        min_time: Minimum duration of one measurement, in seconds.

    Returns:
        The seconds per call of every round, ascending, by name.

    Example:
        >>> [len(times) for times in measure_latency({"a": lambda: sum(range(9))}, repeats=3, min_time=0.001).values()]
        [3]
    """
    timers = {
        name: Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()) for name, run in runs.items()
    }
    calls = {name: _calls_within(timer, min_time) for name, timer in timers.items()}
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, timer in timers.items():
            measured[name].append(timer.timeit(calls[name]).mean)
    return {name: sorted(times) for name, times in measured.items()}


def compare_latency(
    runs: Mapping[str, Callable[[], object]], repeats: int = 7, min_time: float = 0.2
) -> dict[str, float]:
    """Measure several functions in interleaved rounds and return the medians.

    Args:
        runs: Functions by name. Each is warmed up first.
        repeats: Number of rounds. Every function is measured once per round.
        min_time: Minimum duration of one measurement, in seconds.

    Returns:
        The median seconds per call, by name.

    Example:
        >>> sorted(compare_latency({"a": lambda: sum(range(9)), "b": lambda: None}, repeats=1, min_time=0.001))
        ['a', 'b']
    """
    measured = measure_latency(runs, repeats, min_time)
    return {name: statistics.median(times) for name, times in measured.items()}


def measure_encoder(encoder: Encoder, batch_size: int, length: int, runtime: LatencyRuntime = "torch") -> float:
    """Measure the latency of all layers of a dense or pruned encoder, in seconds per batch.

    Args:
        encoder: The encoder.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.
        runtime: The runtime of the layers.
    """
    with eval_mode(encoder.model):
        return measure_fastest(layers_runner(encoder, batch_size, length, runtime))[0]


def latency_ratio(
    dense: Encoder, pruned: Encoder, batch_size: int, length: int, runtime: LatencyRuntime = "torch"
) -> float:
    """Measure the latency of an encoder's layers as a fraction of another encoder's.

    Args:
        dense: The other encoder.
        pruned: The encoder.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.
        runtime: The runtime of the layers.
    """
    with eval_mode(dense.model), eval_mode(pruned.model):
        runs = [layers_runner(encoder, batch_size, length, runtime) for encoder in (dense, pruned)]
        before, left = measure_fastest(*runs)
    return left / before


def layers_runner(encoder: Encoder, batch_size: int, length: int, runtime: LatencyRuntime = "torch") -> Run:
    """Return a function that runs all layers of an encoder on fixed random hidden states.

    Args:
        encoder: The dense or pruned encoder, in eval mode.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.
        runtime: The runtime of the layers.
    """
    encoder = encoder_for(runtime, encoder)
    if runtime != "torch":
        use_channel_layers(encoder)
    hidden = random_hidden_states(encoder, batch_size, length)
    [run] = load_modules([_AllLayers(encoder, batch_size, length)], hidden, runtime)
    return run


def encoder_for(runtime: LatencyRuntime, encoder: Encoder) -> Encoder:
    """Return the encoder to measure in a runtime: itself for PyTorch, else a copy with eager attention, as in exports.

    Args:
        runtime: The runtime.
        encoder: The encoder.
    """
    if runtime == "torch":
        return encoder
    copied = replace(encoder, name="", model=copy.deepcopy(encoder.model), root=None)
    copied.model.set_attn_implementation("eager")
    return copied


class _AllLayers(nn.Module):
    """A module that runs all layers of an encoder on hidden states of one size.

    Args:
        encoder: The encoder.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.
    """

    def __init__(self, encoder: Encoder, batch_size: int, length: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = encoder.model  # Exporters need the parameters.
        self.arguments = layer_arguments(encoder, batch_size, length)
        self.tokens = torch.ones(batch_size, length, dtype=torch.bool, device=encoder.model.device)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the output of the last layer."""
        states, layers = hidden, self.encoder.layers
        for step, (number, given) in enumerate(zip(self.encoder.order, self.arguments, strict=True)):
            for sublayer in SUBLAYERS:
                states = self.encoder.run(layers[number], sublayer, states, given)
            states = self.encoder.pass_on(step, hidden, states, self.tokens)
        return states


@torch.inference_mode()
def measure_fastest(*runs: Callable[[], Tensor]) -> list[float]:
    """Time functions in turn, and return the seconds of the fastest call of each.

    Args:
        runs: The functions. Each is called once to warm up.
    """
    on_gpu = [run().device.type == "cuda" for run in runs]  # these calls are the warm-up
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(NUM_CALLS):
        for run, asynchronous, measured in zip(runs, on_gpu, times, strict=True):
            if asynchronous:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            if asynchronous:
                torch.cuda.synchronize()
            measured.append(time.perf_counter() - begin)
    return [min(measured) for measured in times]


@torch.no_grad()
def layer_arguments(encoder: Encoder, batch_size: int, length: int) -> list[dict[str, Any]]:
    """Return the arguments with which the model calls its layers, such as rotary embeddings, for texts of one length.

    Args:
        encoder: The encoder. It runs once, if its layers need arguments.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.

    Returns:
        For each run of a layer, the arguments that the family's sublayers need besides hidden states.
    """
    family = encoder.family
    if not (family.needs_arguments or family.shared_arguments):
        return [{} for _ in encoder.order]
    needed = (*family.arguments, *family.shared_arguments)
    found: list[dict[str, Any]] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = encoder.arguments_of(args, kwargs)
        found.append({name: given[name] for name in needed if name in given})

    padding = getattr(encoder.model.config, "pad_token_id", None)
    tokens = torch.full((batch_size, length), 1 if padding == 0 else 0, device=encoder.model.device)
    handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in encoder.layers]
    try:
        with eval_mode(encoder.model):
            encoder.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    finally:
        for handle in handles:
            handle.remove()
    return found


def random_hidden_states(encoder: Encoder, batch_size: int, length: int) -> Tensor:
    """Return fixed random hidden states on the encoder's device and in its precision.

    Args:
        encoder: The encoder.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.

    Returns:
        The states, (batch_size, length, hidden size).
    """
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, length, int(encoder.model.config.hidden_size))
    states = torch.randn(shape, generator=generator, device=generator.device)
    return states.to(encoder.model.device, encoder.model.dtype)


def _calls_within(timer: Timer, seconds: float) -> int:
    """Warm up a function and return the number of calls that take about ``seconds``."""
    timer.timeit(2)
    return max(1, round(seconds / timer.timeit(2).mean))
