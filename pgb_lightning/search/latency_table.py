"""How long each shape of a sublayer takes on the user's own device: the cost in which a speed-up is budgeted."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pgb_lightning._compat import attention_implementation
from pgb_lightning.encoders.base import SUBLAYERS, Encoder
from pgb_lightning.modes import eval_mode
from pgb_lightning.plan import Index, MatrixPlan
from pgb_lightning.search.candidates import Candidate
from pgb_lightning.surgery.apply import prune_sublayer
from pgb_lightning.surgery.folding import fold

#: Calls of a shape, of which the fastest counts: what disturbs a measurement only ever makes it longer.
CALLS = 5


@dataclass(frozen=True)
class LatencyTable:
    """Seconds a batch by shape.

    Calling it with a candidate gives the candidate's cost; a shape that takes as long as a better one is never worth
    its loss, so one that is not faster than the dense sublayer is never chosen.

    Args:
        seconds: Seconds of each shape, by :func:`shape_key`.
        attention_unit: How many features of attention are left out together.
    """

    seconds: dict[str, float]
    attention_unit: int

    def __call__(self, candidate: Candidate) -> float:
        """Return what a candidate takes."""
        return self.seconds[shape_key(candidate, self.attention_unit)]


def measure_table(
    encoder: Encoder,
    candidates: Iterable[Iterable[Candidate]],
    batch_size: int,
    length: int,
    folder: Path | None = None,
) -> LatencyTable:
    """Measure all shapes among some candidates, or read what was measured before on the same machine.

    Args:
        encoder: The dense encoder; it is as it was afterwards.
        candidates: The candidates, sublayer by sublayer.
        batch_size: Sequences in a batch.
        length: Tokens of each.
        folder: Where tables are kept; :func:`cache_folder` if not given.

    Returns:
        The table, with every candidate's shape in it.
    """
    path = (folder or cache_folder()) / f"{_setting(encoder, batch_size, length)}.json"
    seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    missing: dict[str, Candidate] = {}
    for candidate in (candidate for options in candidates for candidate in options):
        shape = shape_key(candidate, encoder.attention_unit)
        if shape not in seconds:
            missing.setdefault(shape, candidate)
    if missing:
        hidden = _hidden(encoder, batch_size, length)
        with eval_mode(encoder.model):
            seconds |= {shape: _time_candidate(encoder, candidate, hidden) for shape, candidate in missing.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(seconds, indent=1) + "\n")
        unfinished.replace(path)
    return LatencyTable(seconds, encoder.attention_unit)


def measure_encoder(encoder: Encoder, batch_size: int, length: int) -> float:
    """Measure all layers of an encoder, dense or pruned, one after the other.

    Args:
        encoder: The encoder.
        batch_size: Sequences in a batch.
        length: Tokens of each.

    Returns:
        Seconds a batch.
    """
    with eval_mode(encoder.model):
        return measure_fastest(layers_runner(encoder, batch_size, length))[0]


def layers_runner(encoder: Encoder, batch_size: int, length: int) -> Callable[[], Tensor]:
    """Make a function that runs all layers of an encoder, one after the other, on random hidden states.

    Args:
        encoder: The encoder, dense or pruned.
        batch_size: Sequences in a batch.
        length: Tokens of each.
    """
    hidden = _hidden(encoder, batch_size, length)

    def run() -> Tensor:
        states = hidden
        for layer in encoder.layers:
            for sublayer in SUBLAYERS:
                states = encoder.run(layer, sublayer, states)
        return states

    return run


def shape_key(candidate: Candidate, attention_unit: int) -> str:
    """Say in a line what a candidate's speed depends on: its blocks, and what must be moved.

    Args:
        candidate: The candidate.
        attention_unit: How many features of attention are left out together.
    """
    folded = fold(candidate.matrices, candidate.sublayer, attention_unit)
    return f"{candidate.sublayer}: {', '.join(_describe(matrix) for matrix in folded.matrices.values())}"


def cache_folder() -> Path:
    """Return where tables are kept: in ``pgb_lightning`` under ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgb_lightning" / "latency"


def _describe(matrix: MatrixPlan) -> str:
    if matrix.input_index is None or matrix.output_index is None:
        return f"{matrix.rows}x{matrix.columns}"
    if not matrix.input_index:
        return "-"
    rows, columns = len(matrix.input_index[0]), len(matrix.output_index[0])
    taken = "" if _in_order(matrix.input_index, matrix.rows) else "<"
    put = "" if _in_order(matrix.output_index, matrix.columns) else ">"
    return f"{taken}{matrix.num_groups}x{rows}x{columns}{put}"


def _in_order(index: Index, size: int) -> bool:
    return [position for block in index or () for position in block] == list(range(size))


def _time_candidate(encoder: Encoder, candidate: Candidate, hidden: Tensor) -> float:
    """Carry a candidate out on a copy of its layer, and measure its sublayer."""
    stack = encoder.model.get_submodule(encoder.family.layers)
    assert isinstance(stack, nn.ModuleList)
    original = stack[candidate.layer]
    try:
        stack[candidate.layer] = copy.deepcopy(original)
        prune_sublayer(encoder, candidate.layer, candidate.sublayer, candidate.matrices)
        return measure_fastest(partial(encoder.run, stack[candidate.layer], candidate.sublayer, hidden))[0]
    finally:
        stack[candidate.layer] = original


@torch.inference_mode()
def measure_fastest(*runs: Callable[[], Tensor]) -> list[float]:
    """Measure functions in turn; return of each the seconds that its fastest call took.

    Args:
        runs: The functions; each is warmed up first.
    """
    on_gpu = [run().device.type == "cuda" for run in runs]  # which warms up, too
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(CALLS):
        for run, asynchronous, measured in zip(runs, on_gpu, times, strict=True):
            if asynchronous:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            if asynchronous:
                torch.cuda.synchronize()
            measured.append(time.perf_counter() - begin)
    return [min(measured) for measured in times]


def _hidden(encoder: Encoder, batch_size: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(batch_size, length, int(encoder.model.config.hidden_size), generator=generator)
    return states.to(encoder.model.device, encoder.model.dtype)


def _setting(encoder: Encoder, batch_size: int, length: int) -> str:
    """Name all that a table depends on but the shapes."""
    device = encoder.model.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    sizes = [encoder.inner_size(sublayer) for sublayer in SUBLAYERS]
    setting = [
        *(encoder.model_type, encoder.model.config.hidden_size, encoder.head_size, sizes, str(encoder.model.dtype)),
        *(device.type, machine, os.cpu_count(), torch.get_num_threads(), torch.__version__, batch_size, length),
        *(attention_implementation(encoder.model.config), _matmul_precision()),
    ]
    return hashlib.sha256(json.dumps(setting, default=str).encode()).hexdigest()[:16]


def _matmul_precision() -> str:
    """Return how precise products are; torch does not answer where another of its settings was used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return str(torch.backends.cuda.matmul.fp32_precision)
