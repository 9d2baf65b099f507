"""Latency of dense and pruned models in several runtimes, measured in one run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, get_args

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.benchmark.measures import Times, summarize
from pgb_lightning.export.onnx import TensorModel, output_names, write_graph
from pgb_lightning.export.onnx_quantization import quantize_onnx
from pgb_lightning.export.openvino import convert_onnx
from pgb_lightning.export.sessions import Run, onnx_run, openvino_run, torch_program_run
from pgb_lightning.export.torch_program import trace
from pgb_lightning.latency import measure_latency
from pgb_lightning.runtimes.requirements import require_onnx, require_openvino, require_torch

Runtime: TypeAlias = Literal[
    "torch",
    "torch-bf16",
    "torch-export",
    "onnxruntime",
    "onnxruntime-int8",
    "onnxruntime-int8-dynamic",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
]

Batch: TypeAlias = Mapping[str, Tensor]

#: Functions that run a model on a batch, by runtime and name of the model.
Runs: TypeAlias = dict[tuple[Runtime, str], Run]

#: The runtime of the dense model with which all others are compared.
REFERENCE: Runtime = "torch"


def check_runtimes(runtimes: Sequence[str], dtype: str, device: str, compiled: bool) -> None:
    """Check that runtimes are known, their packages are installed, and they support the other settings.

    Args:
        runtimes: The runtimes.
        dtype: The setting of the benchmark, which must be left at its default.
        device: Likewise.
        compiled: Likewise.

    Raises:
        ModuleNotFoundError: If a package is missing.
        ValueError: If a runtime is unknown, or another setting cannot be used with runtimes.
    """
    if unknown := [name for name in runtimes if name not in get_args(Runtime)]:
        raise ValueError(f"runtimes={unknown} is unknown. Use {', '.join(map(repr, get_args(Runtime)))}.")
    for name, value, needed in (("dtype", dtype, "float32"), ("device", device, "cpu"), ("compiled", compiled, False)):
        if runtimes and value != needed:
            raise ValueError(
                f"{name}={value!r} cannot be used with runtimes={list(runtimes)}, which need {name}={needed!r}. Change "
                "one of the two."
            )
    if "torch-export" in runtimes:
        require_torch("torch-export")
    if any(name.startswith("onnxruntime") for name in runtimes):
        require_onnx()
    if any(name.startswith("openvino") for name in runtimes):
        require_openvino()


@contextmanager
def loaded_runs(
    models: Mapping[str, PreTrainedModel],
    runtimes: Sequence[Runtime],
    calibration: Sequence[Batch],
    console: Console,
) -> Iterator[Runs]:
    """Export all models for all runtimes and load them, with PyTorch's number of threads.

    Args:
        models: Models in single precision on the CPU, in eval mode. The first is ``"dense"``.
        runtimes: The runtimes. PyTorch in single precision is added if it is missing, since it is the reference.
        calibration: Batches from which ranges of activations are taken.
        console: Shows which model is being exported and loaded.

    Yields:
        The functions that run the models, by runtime and name. The exported files are removed afterwards.
    """
    chosen = list(dict.fromkeys((REFERENCE, *runtimes)))
    with TemporaryDirectory() as folder:
        runs: Runs = {}
        for number, (name, model) in enumerate(models.items(), start=1):
            console.print(f"Loading {number} of {len(models)}: {name}", markup=False, soft_wrap=True)
            target = Path(folder) / str(number)
            target.mkdir()
            for runtime, run in _load(model, chosen, target, calibration).items():
                runs[runtime, name] = run
        yield runs


def measure_runs(runs: Runs, batches: Sequence[Batch], repeats: int, min_time: float) -> Iterator[dict[str, Any]]:
    """Measure inference of all models in all runtimes, in interleaved rounds.

    Args:
        runs: The result of :func:`loaded_runs`.
        batches: Batches without padding.
        repeats: Number of rounds.
        min_time: Minimum duration of one measurement, in seconds.

    Yields:
        For each batch, its size, its length and, by runtime and model, the median and quartiles in seconds, the speedup
        over the dense model in the same runtime (``speedup``), and over the dense model in PyTorch
        (``speedup_over_torch``).
    """
    for batch in batches:
        size, length = batch["input_ids"].shape
        times = measure_latency(
            {f"{runtime} {name}": partial(run, batch) for (runtime, name), run in runs.items()}, repeats, min_time
        )
        found: dict[Runtime, Times] = {}
        for runtime, name in runs:
            found.setdefault(runtime, {})[name] = times[f"{runtime} {name}"]
        yield {"batch_size": size, "length": length, "runtimes": _compare(found)}


def _compare(times: Mapping[Runtime, Times]) -> dict[Runtime, dict[str, dict[str, float]]]:
    summaries = {runtime: summarize(found) for runtime, found in times.items()}
    reference = summaries[REFERENCE]["dense"]["median"]
    for models in summaries.values():
        for found in models.values():
            found["speedup_over_torch"] = reference / found["median"]
    return summaries


def _load(
    model: PreTrainedModel, runtimes: Sequence[Runtime], folder: Path, calibration: Sequence[Batch]
) -> dict[Runtime, Run]:
    """Write the files that the runtimes need, and load the model in each of them."""
    plain, right = folder / "model.onnx", folder / "weights_right.onnx"
    if "onnxruntime" in runtimes:
        write_graph(TensorModel(model, weights_right=False), plain)
    if any(name.startswith(("onnxruntime-", "openvino")) for name in runtimes):
        write_graph(TensorModel(model, weights_right=True), right)
    ir, integers = folder / "openvino.xml", folder / "openvino_int8.xml"
    if "openvino" in runtimes or "openvino-bf16" in runtimes:
        convert_onnx(right, ir)
    if "openvino-int8" in runtimes:
        convert_onnx(right, integers, calibration)
    loaders: dict[Runtime, Callable[[], Run]] = {
        "torch": lambda: _torch_run(model),
        "torch-bf16": lambda: _torch_run(copy.deepcopy(model).to(dtype=torch.bfloat16)),  # type: ignore[call-arg]
        "torch-export": lambda: torch_program_run(trace(TensorModel(model, weights_right=None))),
        "onnxruntime": lambda: onnx_run(plain),
        "onnxruntime-int8": lambda: onnx_run(quantize_onnx(right, folder / "static.onnx", calibration)),
        "onnxruntime-int8-dynamic": lambda: onnx_run(quantize_onnx(right, folder / "dynamic.onnx")),
        "openvino": lambda: openvino_run(ir),
        "openvino-bf16": lambda: openvino_run(ir, precision="bf16"),
        "openvino-int8": lambda: openvino_run(integers),
    }
    return {runtime: loaders[runtime]() for runtime in runtimes}


def _torch_run(model: PreTrainedModel) -> Run:
    names = output_names(model)

    @torch.inference_mode()
    def call(batch: Batch) -> list[Tensor]:
        output = model(**batch)
        return [output[name] for name in names]

    return call
