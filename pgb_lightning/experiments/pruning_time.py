"""How long pruning takes, against one forward and backward pass over the same calibration batches.

Example:
    ::

        python -m pgb_lightning.experiments.pruning_time --num_samples 256
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForSequenceClassification

from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.config import PruningConfig
from pgb_lightning.pruning import carry_out, make_plan, prepare


def run(
    num_samples: int = 256,
    length: int = 128,
    batch_size: int = 32,
    model_type: str = "bert",
    num_layers: int = 12,
    pruning_ratio: float = 0.5,
    preset: str = "default",
) -> dict[str, float]:
    """Measure a full-size encoder with random weights on random tokens, all in one run.

    Args:
        num_samples: Calibration samples; the paper has 2,048.
        length: Tokens a sample, all of them real.
        batch_size: Samples a batch.
        model_type: ``bert`` or ``roberta``, in their base sizes.
        num_layers: Layers.
        pruning_ratio: The target.
        preset: "default", "paper" or "balanced".

    Returns:
        Seconds by step, and the peak of memory in MB before and after pruning.
    """
    torch.manual_seed(0)
    settings = AutoConfig.for_model(model_type, num_hidden_layers=num_layers)
    model = AutoModelForSequenceClassification.from_config(settings).eval()  # type: ignore[no-untyped-call]
    batches = [
        {
            "input_ids": torch.randint(5, settings.vocab_size, (batch_size, length)),
            "labels": torch.randint(2, (batch_size,)),
        }
        for _ in range(num_samples // batch_size)
    ]
    found: dict[str, float] = {}
    model(**batches[0]).loss.backward()  # warm up, and allocate the gradients that training has anyway
    with _timed("forward and backward", found):
        for batch in batches:
            model(**batch).loss.backward()
    found["peak memory before, MB"] = _peak()
    config = PruningConfig.from_preset(preset, pruning_ratio=pruning_ratio)
    encoder = prepare(model, config)
    with _timed("calibration", found):
        statistics = calibrate(
            *(encoder, batches, lambda batch: model(**batch).loss),
            max_tokens=config.compensation_tokens,
            moments=config.needs_moments,
        )
    with _timed("plan", found):
        plan = make_plan(encoder, statistics, config)
    with _timed("compensation and surgery", found):
        carry_out(encoder, plan, statistics, config)
    found["peak memory after, MB"] = _peak()
    _print(found)
    return found


@contextmanager
def _timed(name: str, found: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    found[name] = time.perf_counter() - start


def _peak() -> float:
    """Return the process's peak of resident memory so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _print(found: dict[str, float]) -> None:
    table = Table(title=f"Pruning time, {torch.get_num_threads()} threads")
    table.add_column("step")
    table.add_column("value", justify="right")
    table.add_column("x forward and backward", justify="right")
    pass_time = found["forward and backward"]
    for name, value in found.items():
        relative = "" if name.endswith("MB") else f"{value / pass_time:.2f}"
        table.add_row(name, f"{value:,.0f}" if name.endswith("MB") else f"{value:.1f} s", relative)
    pruning = sum(found[name] for name in ("calibration", "plan", "compensation and surgery"))
    table.add_row("pruning in all", f"{pruning:.1f} s", f"{pruning / pass_time:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.pruning_time")
