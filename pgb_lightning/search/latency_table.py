"""Latency of every candidate shape on this device: the cost for ``budget="latency"``, as in ZipLM's latency table.

Shapes are measured in PyTorch, or in the runtime in which the pruned model is to be served. Tables are
cached on disk, because measuring all shapes takes a while.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgb_lightning._compat import attention_implementation
from pgb_lightning.atomic_write import write_atomically
from pgb_lightning.config import LatencyRuntime
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.latency import encoder_for, layer_arguments, measure_fastest, random_hidden_states
from pgb_lightning.layers import KERNEL_VERSION
from pgb_lightning.modes import eval_mode
from pgb_lightning.plan import Index, MatrixPlan
from pgb_lightning.runtimes.channel_layers import use_channel_layers
from pgb_lightning.runtimes.loading import load_modules, runtime_version
from pgb_lightning.search.candidates import Candidate
from pgb_lightning.search.processor import processor_name
from pgb_lightning.surgery.apply import prune_sublayer
from pgb_lightning.surgery.folding import fold


@dataclass(frozen=True)
class LatencyTable:
    """Latency of sublayer shapes, in seconds per batch.

    Call the table with a candidate to get its cost. A shape that is not faster than the dense sublayer is never chosen,
    because the dense sublayer has less loss at the same or a lower cost.

    Args:
        seconds: Seconds per batch of each shape, by :func:`shape_key`.
        encoder: The encoder that the candidates belong to.
    """

    seconds: dict[str, float]
    encoder: Encoder

    def __call__(self, candidate: Candidate) -> float:
        """Return the seconds per batch of a candidate."""
        return self.seconds[shape_key(candidate, self.encoder)]


def measure_table(
    encoder: Encoder,
    candidates: Iterable[Iterable[Candidate]],
    batch_size: int,
    length: int,
    folder: Path | None = None,
    runtime: LatencyRuntime = "torch",
) -> LatencyTable:
    """Measure the latency of all shapes of the candidates that are missing in the cached table of this setting.

    The new shapes are added to the cache file. See :func:`table_setting` for what identifies a table.

    Args:
        encoder: The dense encoder. It is unchanged afterwards.
        candidates: The candidates of every sublayer.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.
        folder: Folder of the cached tables; by default :func:`cache_folder`.
        runtime: The runtime of the sublayers.

    Returns:
        A table that contains the shape of every candidate.
    """
    setting = json.dumps(table_setting(encoder, batch_size, length, runtime), default=str)
    path = (folder or cache_folder()) / f"{hashlib.sha256(setting.encode()).hexdigest()[:16]}.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    missing: dict[str, Candidate] = {}
    for options in candidates:
        for candidate in options:
            shape = shape_key(candidate, encoder)
            if shape not in seconds:
                missing[shape] = candidate  # the last layer of this shape, as the first layer may lack a pre-norm
    if missing:
        with eval_mode(encoder.model):
            times = _time_candidates(encoder, list(missing.values()), batch_size, length, runtime)
            seconds |= zip(missing, times, strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(seconds, indent=1) + "\n")
    return LatencyTable(seconds, encoder)


def shape_key(candidate: Candidate, encoder: Encoder) -> str:
    """Return a text for all that a candidate's latency depends on: the blocks of each matrix, gathers and scatters.

    A matrix of G blocks of m x n is written ``Gxmxn``, with ``<`` before it if its inputs are gathered and ``>`` after
    it if its outputs are scattered; a removed matrix is ``-``. If some layers have local attention, the type of the
    layer's attention is in brackets.

    Args:
        candidate: The candidate.
        encoder: The encoder that it belongs to.
    """
    folded = fold(candidate.matrices, candidate.sublayer, encoder.attention_unit)
    of_layer = encoder.attention_type(candidate.layer) if candidate.sublayer == "attention" else ""
    name = f"{candidate.sublayer} ({of_layer})" if of_layer else candidate.sublayer
    return f"{name}: {', '.join(_describe(matrix) for matrix in folded.matrices.values())}"


def cache_folder() -> Path:
    """Return the folder of cached tables: ``pgb_lightning/latency`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgb_lightning" / "latency"


def table_setting(encoder: Encoder, batch_size: int, length: int, runtime: LatencyRuntime = "torch") -> dict[str, Any]:
    """Return everything but the shapes that a table's latencies depend on; its hash is the name of the cache file.

    Args:
        encoder: The dense encoder.
        batch_size: Number of sequences per batch.
        length: Number of tokens per sequence.
        runtime: The runtime of the sublayers.
    """
    config, device = encoder.model.config, encoder.model.device
    on_gpu = device.type == "cuda"
    return {name: getattr(config, name, None) for name in encoder.family.timed_settings} | {
        "model_type": encoder.model_type,
        "hidden_size": config.hidden_size,
        "head_size": encoder.head_size,
        "queries_per_key": encoder.queries_per_key,
        "inner_sizes": [encoder.inner_size(sublayer) for sublayer in SUBLAYERS],
        "dtype": str(encoder.model.dtype),
        "attention": attention_implementation(config),
        "batch_size": batch_size,
        "length": length,
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "matmul_precision": _matmul_precision(),
        "torch": torch.__version__,
        "runtime": runtime,
        "runtime_version": runtime_version(runtime),
        "kernels": KERNEL_VERSION,
    }


def _describe(matrix: MatrixPlan) -> str:
    if matrix.input_index is None or matrix.output_index is None:
        return f"{matrix.rows}x{matrix.columns}"
    if not matrix.input_index:
        return "-"
    rows, columns = len(matrix.input_index[0]), len(matrix.output_index[0])
    gather = "" if _in_order(matrix.input_index, matrix.rows) else "<"
    scatter = "" if _in_order(matrix.output_index, matrix.columns) else ">"
    return f"{gather}{matrix.num_groups}x{rows}x{columns}{scatter}"


def _in_order(index: Index, size: int) -> bool:
    """Return whether an index lists 0, 1, ..., size - 1."""
    return [position for block in index or () for position in block] == list(range(size))


def _time_candidates(
    encoder: Encoder, candidates: Sequence[Candidate], batch_size: int, length: int, runtime: LatencyRuntime
) -> Iterator[float]:
    """Measure the latency of candidates, each on a pruned copy of its layer."""
    measured = encoder_for(runtime, encoder)
    arguments = dict(zip(measured.order, layer_arguments(measured, batch_size, length), strict=True))
    modules = (_Pruned(measured, each, arguments[each.layer], runtime != "torch") for each in candidates)
    for run in load_modules(modules, random_hidden_states(measured, batch_size, length), runtime):
        yield measure_fastest(run)[0]


class _Pruned(nn.Module):
    """A sublayer of a pruned copy of a layer, as a module that takes only hidden states.

    Args:
        encoder: The dense encoder. It is unchanged afterwards.
        candidate: The candidate to which the sublayer is pruned.
        arguments: The other arguments with which the model calls the layer.
        is_exported: Whether the copy gets the layers for export to other runtimes.
    """

    def __init__(self, encoder: Encoder, candidate: Candidate, arguments: Mapping[str, Any], is_exported: bool) -> None:
        super().__init__()
        self.encoder, self.arguments = encoder, arguments
        self.sublayer = candidate.sublayer
        self.model = encoder.model  # Exporters need the parameters that layers share.
        stack, number = encoder.stack, candidate.layer
        original = stack[number]
        try:
            stack[number] = copy.deepcopy(original)
            prune_sublayer(encoder, number, candidate.sublayer, candidate.matrices)
            if is_exported:
                use_channel_layers(encoder, layers=[number])
            self.layer = encoder.layers[number]
        finally:
            stack[number] = original

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the output of the sublayer."""
        return self.encoder.run(self.layer, self.sublayer, hidden, self.arguments)


def _matmul_precision() -> str:
    """Return the precision of float32 matrix products."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # raised if the precision was set through the newer fp32_precision settings
        return str(torch.backends.cuda.matmul.fp32_precision)
