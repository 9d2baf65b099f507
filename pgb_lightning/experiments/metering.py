"""Time and peak memory of a step of an experiment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pgb_lightning.peak_memory import peak_memory

#: Which time is measured: "process" is the time that the process computes, which other programs affect less.
Clock = Literal["wall", "process"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}

#: Writing 5 to it resets the peak memory of this process on Linux.
LINUX_RESET = Path("/proc/self/clear_refs")


@dataclass
class Usage:
    """Time and memory of a step; set when the step ends.

    Args:
        seconds: The duration of the step.
        processor_seconds: The time that all threads of the process computed during the step.
        peak_memory_bytes: Peak memory during the step: of the process on a CPU, of tensors on a GPU. ``None`` if the
            platform does not report it. If the peak of a process cannot be reset, it is the peak since the process
            started.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_memory_bytes: int | None = None

    def __add__(self, other: Usage) -> Usage:
        """Return the usage of two steps, one after the other."""
        peaks = [one.peak_memory_bytes for one in (self, other) if one.peak_memory_bytes is not None]
        return Usage(
            seconds=self.seconds + other.seconds,
            processor_seconds=self.processor_seconds + other.processor_seconds,
            peak_memory_bytes=max(peaks, default=None),
        )


@contextmanager
def metered() -> Iterator[Usage]:
    """Measure the code inside the ``with`` block.

    Yields:
        The record, which is complete after the step.

    Example:
        >>> with metered() as usage:
        ...     numbers = [0.0] * 1000
        >>> usage.seconds > 0
        True
    """
    usage = Usage()
    _reset_peak()
    start, computed = time.perf_counter(), time.process_time()
    try:
        yield usage
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            usage.peak_memory_bytes = torch.cuda.max_memory_allocated()
        else:
            usage.peak_memory_bytes = peak_memory()
        usage.seconds = time.perf_counter() - start
        usage.processor_seconds = time.process_time() - computed


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif LINUX_RESET.exists():
        try:
            LINUX_RESET.write_text("5")
        except OSError:  # not allowed in this container
            return
