"""Latency measurements in interleaved rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch
from torch.utils.benchmark import Timer


def measure_latency(
    runs: Mapping[str, Callable[[], object]], repeats: int = 7, min_time: float = 0.2
) -> dict[str, list[float]]:
    """Measure several functions in interleaved rounds, so that changes of the machine's speed affect all of them.

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


def _calls_within(timer: Timer, seconds: float) -> int:
    """Warm up a function and return the number of calls that take about ``seconds``."""
    timer.timeit(2)
    return max(1, round(seconds / timer.timeit(2).mean))
