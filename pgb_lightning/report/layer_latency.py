"""Latency and FLOPs of a pruned encoder's layers, compared with dense layers of the same architecture."""

from __future__ import annotations

import torch

from pgb_lightning.config import LatencyRuntime
from pgb_lightning.cost import dense_cost, encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.latency import layers_runner, measure_latency
from pgb_lightning.modes import eval_mode
from pgb_lightning.report.facts import Latency
from pgb_lightning.surgery.dense_twin import dense_reference


def measure_layer_latency(
    encoder: Encoder,
    batch_size: int,
    length: int,
    runtime: LatencyRuntime = "torch",
    repeats: int = 5,
    min_time: float = 0.1,
) -> Latency:
    """Measure the layers of a pruned encoder and of its dense twin, in interleaved rounds.

    The dense encoder is held in memory during the measurement.

    Args:
        encoder: The pruned encoder, on the device to measure.
        batch_size: Sequences per batch.
        length: Tokens per sequence, clipped to the maximum length of the encoder.
        runtime: The runtime of the layers.
        repeats: Number of rounds. Each measures both encoders.
        min_time: Minimum duration of one measurement, in seconds.

    Returns:
        The measurements of all rounds.
    """
    dense, length = dense_reference(encoder), min(length, encoder.max_length)
    encoders = {"dense": dense, "pruned": encoder}
    with eval_mode(encoder.model):
        runs = {name: layers_runner(each, batch_size, length, runtime) for name, each in encoders.items()}
        with torch.inference_mode():
            seconds = measure_latency(runs, repeats, min_time)
    return Latency(
        batch_size=batch_size,
        length=length,
        device=_describe(encoder.model.device, runtime),
        dense=tuple(seconds["dense"]),
        pruned=tuple(seconds["pruned"]),
    )


def count_flops(encoder: Encoder) -> dict[str, int]:
    """Return the FLOPs of the dense and of the pruned encoder for one sequence of 128 tokens."""
    return {"dense": dense_cost(encoder).flops, "pruned": encoder_cost(encoder).flops}


def _describe(device: torch.device, runtime: LatencyRuntime) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    where = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return where if runtime == "torch" else f"{where}, {runtime}"
