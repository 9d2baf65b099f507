"""The measurements of a benchmark: latency, training steps, bytes and peak memory."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.benchmark.devices import synchronize
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.latency import layer_arguments, measure_latency
from pgb_lightning.peak_memory import peak_memory as peak_of_process

Times = dict[str, list[float]]


def forward_times(models: Mapping[str, nn.Module], batch: dict[str, Tensor], repeats: int, min_time: float) -> Times:
    """Measure inference, in seconds per batch."""
    return measure_latency(
        {name: partial(_run_inference, model, batch) for name, model in models.items()}, repeats, min_time
    )


def sublayer_times(
    models: Mapping[str, PreTrainedModel], batch: dict[str, Tensor], repeats: int, min_time: float
) -> dict[str, Times]:
    """Measure the sublayers of all layers by kind, on random hidden states, in seconds per batch."""
    shape, first = batch["input_ids"].shape, next(iter(models.values()))
    hidden = torch.randn(*shape, first.config.hidden_size, device=first.device).to(first.dtype)
    arguments = {name: layer_arguments(find_encoder(model), *shape) for name, model in models.items()}
    times: dict[str, Times] = {}
    for sublayer in SUBLAYERS:
        runs: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            encoder = find_encoder(model)
            layers, given = encoder.layers, zip(encoder.order, arguments[name], strict=True)
            runs[name] = partial(
                _call_all, [partial(encoder.run, layers[number], sublayer, hidden, each) for number, each in given]
            )
        times[sublayer] = measure_latency(runs, repeats, min_time)
    return times


def training_times(models: Mapping[str, nn.Module], batch: dict[str, Tensor], repeats: int, min_time: float) -> Times:
    """Measure a training step (forward, backward, AdamW, with dropout), in seconds per step."""
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) for name, model in models.items()}
    try:
        for model in models.values():
            model.train()
        runs = {name: partial(_training_step, model, optimizers[name], batch) for name, model in models.items()}
        return measure_latency(runs, repeats, min_time)
    finally:
        for model in models.values():
            model.eval().zero_grad(set_to_none=True)


def summarize(times: Times) -> dict[str, dict[str, float]]:
    """Return the median and quartiles in seconds, and the speedup over the dense model."""
    dense = statistics.median(times["dense"])
    summary = {}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        median = statistics.median(values)
        summary[name] = {"median": median, "low": low, "high": high, "speedup": dense / median}
    return summary


def encoder_bytes(model: nn.Module) -> int:
    """Return the size of the encoder's layers in a checkpoint, in bytes."""
    encoder = find_encoder(model)
    stack = encoder.model.get_submodule(encoder.family.layers)
    return sum(int(value.nbytes) for value in stack.state_dict().values())


def peak_memory(model: nn.Module, batch: dict[str, Tensor]) -> int | None:
    """Return the peak memory of a model and its inference in bytes, ``None`` where the platform does not report it.

    On a CPU it is measured in a separate process.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        _run_inference(model, batch)
        own = sum(int(value.nbytes) for value in model.state_dict().values())
        return int(torch.cuda.max_memory_allocated(device)) - int(held) + own
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save((model, batch, torch.get_num_threads()), path)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            increase: int | None = pool.apply(_increase_of_peak, (str(path),))
            return increase


def _increase_of_peak(path: str) -> int | None:
    before = peak_of_process()
    model, batch, threads = torch.load(path, weights_only=False)  # written by this program
    torch.set_num_threads(threads)
    _run_inference(model, batch)
    after = peak_of_process()
    return None if before is None or after is None else after - before


@torch.inference_mode()
def _run_inference(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    output = model(**batch)
    synchronize(next(model.parameters()).device)
    return output


@torch.inference_mode()
def _call_all(calls: list[Callable[[], Tensor]]) -> None:
    output = [call() for call in calls][-1]
    synchronize(output.device)


def _training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    # The loss does not affect the time, and every head has an output.
    model(**batch)[0].float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronize(batch["input_ids"].device)
