"""Duration of pruning, compared with one forward and backward pass over the same calibration batches.

Example:
    ::

        python -m pgb_lightning.experiments.pruning_time --num_samples 256
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from pgb_lightning.benchmark.configurations import full_size_config
from pgb_lightning.benchmark.devices import check_device, synchronize
from pgb_lightning.config import PruningConfig
from pgb_lightning.experiments.metering import CLOCKS, Clock
from pgb_lightning.peak_memory import peak_memory
from pgb_lightning.pruning import carry_out, collect_statistics, make_plan, prepare

PASS = "forward and backward"
PRUNING_STEPS = ("calibration", "plan", "compensation and surgery")


@dataclass(frozen=True)
class PruningTime:
    """Duration and memory of pruning.

    Args:
        seconds: Duration of each step in seconds.
        peak_memory_before: Peak memory of the process before pruning, in bytes; ``None`` if not available.
        peak_memory_after: Peak memory of the process after pruning, in bytes; ``None`` if not available.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_before: int | None = None
    peak_memory_after: int | None = None


def run(
    num_samples: int = 256,
    length: int = 128,
    batch_size: int = 32,
    architecture: str = "bert",
    num_layers: int | None = None,
    pruning_ratio: float = 0.5,
    preset: str = "default",
    device: str = "cpu",
    clock: Clock = "wall",
) -> PruningTime:
    """Measure an encoder of base size with random weights on random tokens.

    Args:
        num_samples: Calibration samples; the paper uses 2,048.
        length: Tokens per sample, without padding.
        batch_size: Samples per batch.
        architecture: The transformers ``model_type`` of a supported family, for its base size, or the name of a
            published encoder such as "ModernBERT-base".
        num_layers: Number of layers; by default that of the configuration.
        pruning_ratio: The target.
        preset: "default", "paper" or "balanced".
        device: The device, such as "cpu" or "cuda".
        clock: "wall", or "process" for the time that the process computes, which other programs affect less. It adds
            up the time of all threads.

    Returns:
        Seconds of each step, and peak memory.

    Raises:
        ValueError: If a setting is unknown or out of range, or the device is not available.
    """
    check_device(device)
    config = PruningConfig.from_preset(preset, pruning_ratio=pruning_ratio)
    dense = full_size_config(architecture, num_layers)
    measured = measure(dense, config, num_samples, length, batch_size, device, clock)
    Console(width=100).print(tabulate(measured))
    return measured


def measure(
    architecture: PretrainedConfig,
    config: PruningConfig,
    num_samples: int,
    length: int,
    batch_size: int,
    device: str = "cpu",
    clock: Clock = "wall",
) -> PruningTime:
    """Measure a model with random weights on random tokens."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(architecture)  # type: ignore[no-untyped-call]
    model.eval().to(device)
    batches = [
        {
            "input_ids": torch.randint(5, architecture.vocab_size, (batch_size, length), device=device),
            "labels": torch.randint(2, (batch_size,), device=device),
        }
        for _ in range(num_samples // batch_size)
    ]

    def loss(batch: dict[str, Tensor]) -> Any:
        return model(**batch).loss

    seconds: dict[str, float] = {}
    loss(batches[0]).backward()  # warm-up; also allocates the gradients, as training does
    with _timed(PASS, seconds, device, CLOCKS[clock]):
        for batch in batches:
            loss(batch).backward()
    before = _peak_memory(device)
    encoder = prepare(model, config)
    with _timed("calibration", seconds, device, CLOCKS[clock]):
        statistics, _ = collect_statistics(model, encoder, batches, config)
    with _timed("plan", seconds, device, CLOCKS[clock]):
        plan = make_plan(encoder, statistics, config)
    with _timed("compensation and surgery", seconds, device, CLOCKS[clock]):
        carry_out(encoder, plan, statistics, config)
    return PruningTime(seconds, peak_memory_before=before, peak_memory_after=_peak_memory(device))


@contextmanager
def _timed(name: str, seconds: dict[str, float], device: str, clock: Callable[[], float]) -> Iterator[None]:
    """Record the duration of the block under a name, including its work on a GPU."""
    synchronize(device)
    start = clock()
    yield
    synchronize(device)
    seconds[name] = clock() - start


def _peak_memory(device: str) -> int | None:
    """Return the peak memory so far, in bytes: on a GPU that of torch's allocator, otherwise that of the process."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_memory()


def tabulate(measured: PruningTime) -> Table:
    """Return the table of the steps, with their durations relative to a forward and backward pass."""
    table = Table(title=f"Pruning time, {torch.get_num_threads()} threads")
    table.add_column("step")
    table.add_column("value", justify="right")
    table.add_column("x forward and backward", justify="right")
    total = sum(measured.seconds[name] for name in PRUNING_STEPS)
    for name, seconds in {**measured.seconds, "pruning in total": total}.items():
        table.add_row(name, f"{seconds:.1f} s", f"{seconds / measured.seconds[PASS]:.2f}")
    peaks = {"before": measured.peak_memory_before, "after": measured.peak_memory_after}
    for stage, peak in peaks.items():
        table.add_row(f"peak memory {stage} pruning", "not available" if peak is None else f"{peak / 1e6:,.0f} MB", "")
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.pruning_time")
