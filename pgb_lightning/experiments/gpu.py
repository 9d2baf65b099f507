"""All measurements of the performance page on a GPU, in one run of a few minutes.

Weights and tokens are random, so nothing is downloaded. Random weights say nothing about accuracy, but they have the
same shapes, and therefore the same latencies.

Example:
    ::

        python -m pgb_lightning.experiments.gpu --out runs/gpu.json

    The same on a CPU, in small, to see what the result looks like::

        python -m pgb_lightning.experiments.gpu --device cpu --architecture distilbert --num_layers 1 \
          --families [distilbert] --dtypes [float32] --num_samples 32
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from pgb_lightning import benchmark
from pgb_lightning.atomic_write import write_atomically
from pgb_lightning.benchmark.configurations import full_size_config
from pgb_lightning.benchmark.devices import check_device, describe_machine
from pgb_lightning.benchmark.models import random_model
from pgb_lightning.benchmark.tables import latency_table, size_table
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import families as published
from pgb_lightning.experiments import pruning_time
from pgb_lightning.experiments.markdown import as_markdown
from pgb_lightning.experiments.missed_targets import ignore_missed_targets
from pgb_lightning.latency import latency_ratio
from pgb_lightning.pruning import prune

NAMES = ("bert-base", "mpnet-base", "ModernBERT-base", "deberta-v3-base")
Dtype = Literal["float32", "bfloat16", "float16"]


#: The results of one section for the JSON file, and its tables in Markdown.
Found = tuple[Any, list[str]]


@dataclass(frozen=True)
class Measurements:
    """The measurements of one device.

    Args:
        device: The device.
        architecture: Name of a published encoder, or a ``model_type`` for the base size of its family.
        num_layers: Number of layers; by default that of the configuration.
        batch_sizes: Sequences per batch.
        length: Tokens per sequence.
        repeats: Number of interleaved rounds.
        min_time: Minimum duration of one measurement, in seconds.
        folder: Folder for the files that the measurements write themselves.
    """

    device: str
    architecture: str
    num_layers: int | None
    batch_sizes: tuple[int, ...]
    length: int
    repeats: int
    min_time: float
    folder: Path

    def latency(self, dtype: Dtype, compiled: bool = False) -> Found:
        """Measure models with the paper's groups, and with fewer heads and neurons."""
        found = benchmark.run(
            architecture=self.architecture,
            num_layers=self.num_layers,
            batch_sizes=self.batch_sizes,
            lengths=(self.length,),
            dtype=dtype,
            device=self.device,
            compiled=compiled,
            compile_mode="reduce-overhead" if compiled else "default",
            training=not compiled,
            repeats=self.repeats,
            min_time=self.min_time,
            out_dir=str(self.folder / f"{dtype}{'-compiled' if compiled else ''}"),
        )
        tables = [
            f"{row['batch_size']} x {row['length']} tokens:\n\n{as_markdown(latency_table(row, found['models']))}"
            for row in found["latency"]
        ]
        return found, tables if compiled else [*tables, as_markdown(size_table(found))]

    def families(self, names: tuple[str, ...], dtype: Dtype) -> Found:
        """Measure encoders of several families with fewer heads and neurons, at the middle batch size."""
        found = published.run(
            names=names,
            plans=("narrow",),
            sizes=((self.middle_batch_size, self.length),),
            num_layers=self.num_layers,
            repeats=self.repeats,
            min_time=self.min_time,
            device=self.device,
            dtype=dtype,
            out=str(self.folder / "families.json"),
        )
        return found["encoders"], ["\n".join(published.markdown(found["encoders"]))]

    def pruning(self, num_samples: int) -> Found:
        """Measure the duration of pruning against a forward and backward pass over the same samples."""
        found = pruning_time.run(
            num_samples=num_samples,
            length=self.length,
            architecture=self.architecture,
            num_layers=self.num_layers,
            device=self.device,
        )
        return asdict(found), [as_markdown(pruning_time.tabulate(found))]

    def speedups(self, targets: tuple[float, ...]) -> Found:
        """Prune to target speedups, and measure the layers of the result against the dense ones."""
        dense = random_model(self.architecture, self.num_layers).to(torch.device(self.device))  # type: ignore[arg-type]
        ids = torch.randint(5, dense.config.vocab_size, (32, self.length), device=self.device)
        labels = torch.randint(2, (len(ids),), device=self.device)
        found = []
        table = Table("target", "speedup", "encoder weights removed")
        for target in targets:
            model = copy.deepcopy(dense)
            config = PruningConfig(
                target_speedup=target, latency_batch_size=self.middle_batch_size, latency_length=self.length
            )
            with ignore_missed_targets():
                plan = prune(model, [{"input_ids": ids, "labels": labels}], config)
            ratio = latency_ratio(find_encoder(dense), find_encoder(model), self.middle_batch_size, self.length)
            found.append({"target": target, "speedup": 1 / ratio, "removed": plan.pruning_ratio})
            table.add_row(f"{target:g}", f"{1 / ratio:.2f}", f"{plan.pruning_ratio:.1%}")
        return found, [as_markdown(table)]

    @property
    def middle_batch_size(self) -> int:
        """The middle one of the batch sizes."""
        return sorted(self.batch_sizes)[len(self.batch_sizes) // 2]


def run(
    device: str = "cuda",
    architecture: str = "bert",
    num_layers: int | None = None,
    dtypes: tuple[Dtype, ...] = ("float32", "float16"),
    batch_sizes: tuple[int, ...] = (1, 8, 32),
    length: int = 128,
    families: tuple[str, ...] = NAMES,
    num_samples: int = 1024,
    target_speedups: tuple[float, ...] = (2.0, 4.0),
    repeats: int = 5,
    min_time: float = 0.05,
    minutes: float = 8.0,
    out: str = "runs/gpu.json",
) -> dict[str, Any]:
    """Measure latency, compiled latency, families, pruning time and target speedups on one device.

    The JSON file, and a Markdown page next to it, are written after every section. Products in single precision use
    TF32 if the GPU supports it.

    Args:
        device: The device.
        architecture: Name of a published encoder, or a ``model_type`` for the base size of its family.
        num_layers: Number of layers; by default that of the configuration.
        dtypes: Data types of weights and activations. Families and compiled models are measured in the last one.
        batch_sizes: Sequences per batch.
        length: Tokens per sequence.
        families: Names of the encoders of other families.
        num_samples: Calibration samples for pruning, of ``length`` tokens.
        target_speedups: Values of ``target_speedup``, at the middle batch size.
        repeats: Number of interleaved rounds of each measurement.
        min_time: Minimum duration of one measurement, in seconds.
        minutes: Time after which no further section is started. The page names the omitted sections.
        out: JSON file for the results.

    Returns:
        The content of the file.

    Raises:
        ValueError: If the device is not available, or a setting is unknown or out of range.
    """
    check_device(device)
    if not dtypes or not batch_sizes:
        raise ValueError(
            f"dtypes={list(dtypes)} or batch_sizes={list(batch_sizes)} is empty. Give at least one of each."
        )
    for target in target_speedups:
        PruningConfig(target_speedup=target)  # raises if out of range
    for name in (architecture, *families):
        full_size_config(name, num_layers)
    path = Path(out)
    measurements = Measurements(
        device=device,
        architecture=architecture,
        num_layers=num_layers,
        batch_sizes=batch_sizes,
        length=length,
        repeats=repeats,
        min_time=min_time,
        folder=path.with_suffix(""),
    )
    sections: dict[str, Callable[[], Found]] = {
        **{f"Latency, {dtype}": partial(measurements.latency, dtype) for dtype in dtypes},
        "Pruning time": partial(measurements.pruning, num_samples),
        f"Families, {dtypes[-1]}": partial(measurements.families, families, dtypes[-1]),
        "Target speedup": partial(measurements.speedups, target_speedups),
        f"Compiled with CUDA graphs, {dtypes[-1]}": partial(measurements.latency, dtypes[-1], compiled=True),
    }
    with tf32():
        results = measure(sections, path, describe_machine(device), 60 * minutes)
    Console().print(f"Results: {path} and {path.with_suffix('.md')}", markup=False, soft_wrap=True)
    return results


def measure(
    sections: Mapping[str, Callable[[], Found]], path: Path, machine: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Measure the sections, and write the results after each.

    Args:
        sections: The measurements by title, the most important first.
        path: JSON file for the results. The page is written next to it.
        machine: Description of the machine.
        seconds: Time after which no further section is started.

    Returns:
        The results.
    """
    results: dict[str, Any] = {
        "machine": machine,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sections": {},
        "not_measured": list(sections),
    }
    page = [f"{name}: {value}" for name, value in (machine | results["versions"]).items()]
    lines = ["# Performance", "", ", ".join(page)]
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    for title, section in sections.items():
        if time.monotonic() - begin > seconds:
            break
        started = time.monotonic()
        found, tables = section()
        results["sections"][title] = {"seconds": time.monotonic() - started, "results": found}
        results["not_measured"].remove(title)
        lines += ["", f"## {title}"]
        for table in tables:
            lines += ["", table]
        write_atomically(path, json.dumps(results, indent=2) + "\n")
        write_atomically(path.with_suffix(".md"), "\n".join(lines) + "\n")
    if left := results["not_measured"]:
        lines += ["", f"Not measured, for lack of time: {'; '.join(left)}."]
        write_atomically(path.with_suffix(".md"), "\n".join(lines) + "\n")
    return results


@contextmanager
def tf32() -> Iterator[None]:
    """Let products in single precision use TF32 inside the block, if the GPU supports it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.gpu")
