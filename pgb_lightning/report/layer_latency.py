"""How long the encoder's layers take, against dense ones of the same shape."""

from __future__ import annotations

import torch
from torch import nn

from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.latency import measure_latency
from pgb_lightning.modes import eval_mode
from pgb_lightning.report.facts import Latency
from pgb_lightning.search.latency_table import layers_runner
from pgb_lightning.surgery.dense_twin import make_dense_model


def compare_with_dense(
    encoder: Encoder, batch_size: int, length: int, repeats: int = 5, min_time: float = 0.1
) -> Latency:
    """Measure a pruned encoder's layers and those of a dense one with random weights, in turn.

    Args:
        encoder: The pruned encoder, where it runs.
        batch_size: Sequences in a batch.
        length: Tokens of each; as many as the encoder takes if those are fewer.
        repeats: Rounds; each measures both.
        min_time: Seconds that one measurement lasts at least.

    Returns:
        What each round found. The dense encoder takes its memory meanwhile.
    """
    model = encoder.model
    with torch.random.fork_rng(devices=[]):
        plain: nn.Module = make_dense_model(model)
    dense = find_encoder(plain.to(device=model.device, dtype=model.dtype).eval())
    length = min(length, encoder.max_length)
    with eval_mode(model), torch.inference_mode():
        runs = {name: layers_runner(each, batch_size, length) for name, each in (("dense", dense), ("pruned", encoder))}
        seconds = measure_latency(runs, repeats, min_time)
    return Latency(batch_size, length, _describe(model.device), tuple(seconds["dense"]), tuple(seconds["pruned"]))


def count_flops(encoder: Encoder) -> dict[str, int]:
    """Count the FLOPs of a sequence of 128 tokens, as it was and as it is."""
    with torch.device("meta"):
        dense = encoder_cost(find_encoder(make_dense_model(encoder.model)))
    return {"dense": dense.flops, "pruned": encoder_cost(encoder).flops}


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return (
        f"{device.type.upper()}, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device)
    )
