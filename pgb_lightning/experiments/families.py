"""Sizes and speedups of published encoders of every family at full size, with random weights.

Random weights say nothing about accuracy, but they have the same shapes, and therefore the same sizes and latencies.

Example:
    ::

        python -m pgb_lightning.experiments.families --num_threads 2 --out runs/families.json

    Only some of them, also compiled::

        python -m pgb_lightning.experiments.families --names [ModernBERT-base,EuroBERT-610m] --compiled true
"""

from __future__ import annotations

import copy
import gc
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning._compat import attention_implementation
from pgb_lightning.atomic_write import write_atomically
from pgb_lightning.benchmark.configurations import full_size_config
from pgb_lightning.benchmark.devices import DTYPES, check_device, describe_machine
from pgb_lightning.benchmark.measures import forward_times
from pgb_lightning.benchmark.models import narrow_plan, random_model
from pgb_lightning.benchmark.tables import realized_savings
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.missed_targets import ignore_missed_targets
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import make_plan
from pgb_lightning.search.candidates import list_candidates
from pgb_lightning.surgery.apply import apply_plan

NAMES = (
    "bert-base",
    "mpnet-base",
    "xlm-roberta-base",
    "ModernBERT-base",
    "deberta-v3-base",
    "nomic-embed-text-v1.5",
    "EuroBERT-210m",
)
SIZES = ((1, 128), (8, 128), (8, 512), (1, 2048))

#: The results of one encoder.
Result = dict[str, Any]


def run(
    names: tuple[str, ...] = NAMES,
    plans: tuple[Literal["default", "narrow"], ...] = ("default", "narrow"),
    pruning_ratios: tuple[float, ...] = (0.5, 0.88),
    sizes: tuple[tuple[int, int], ...] = SIZES,
    compiled: bool = False,
    num_samples: int = 16,
    num_layers: int | None = None,
    settings: dict[str, int] | None = None,
    repeats: int = 5,
    min_time: float = 0.2,
    num_threads: int | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    out: str = "runs/families.json",
) -> dict[str, Any]:
    """Prune encoders with random weights, and measure them against their dense models, one encoder after another.

    Prints a table, and writes the results as JSON and the table as Markdown beside it.

    Args:
        names: Names of published encoders, or model types for the base size of a family.
        plans: "default" searches over shapes, as the default preset does; "narrow" keeps fewer heads and neurons, the
            same number in every layer.
        pruning_ratios: Fractions of the encoder's weights to remove.
        sizes: Sequences per batch and tokens per sequence. Sizes that exceed an encoder's maximum length are skipped.
        compiled: Whether to also measure the models under ``torch.compile``.
        num_samples: Calibration samples of 128 random tokens for the default plan.
        num_layers: Number of layers; by default that of the encoder.
        settings: Other settings that replace those of every configuration, for a quick trial.
        repeats: Number of interleaved rounds, of which the median is used.
        min_time: Minimum duration of one measurement, in seconds.
        num_threads: Number of CPU threads; by default chosen by torch.
        device: The device, such as "cpu" or "cuda".
        dtype: Data type of weights and activations in the measurements.
        out: JSON file for the results.

    Returns:
        The content of the file.

    Raises:
        ValueError: If a name is unknown, a setting is out of range, or the device is not available.
    """
    check_device(device)
    for name in names:
        full_size_config(name, num_layers, **settings or {})
    for ratio in pruning_ratios:
        PruningConfig(pruning_ratio=ratio)
    if not sizes or min(number for size in sizes for number in size) < 1:
        raise ValueError(f"sizes={list(sizes)} is out of range. Use pairs of integers of at least 1, such as [8,128].")
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    found: dict[str, Any] = {
        "machine": describe_machine(device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "encoders": [],
    }
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    console = Console(width=140)
    for name in names:
        dense = random_model(name, num_layers, **settings or {}).to(torch.device(device))  # type: ignore[arg-type]
        made = dict(pruned_copies(dense, plans, pruning_ratios, num_samples))
        models = {"dense": dense, **{key: model for key, (model, _) in made.items()}}
        result = _sizes(name, dense, models, {key: plan for key, (_, plan) in made.items()})
        for model in models.values():
            model.to(DTYPES[dtype])  # after pruning, which takes single precision
        result["latency"] = list(_latency(models, sizes, compiled, repeats, min_time))
        found["encoders"].append(result)
        write_atomically(path, json.dumps(found, indent=2) + "\n")  # keep the results if the run is interrupted
        write_atomically(path.with_suffix(".md"), "\n".join(markdown(found["encoders"])) + "\n")
        console.print(_table(result))
        del dense, models, made
        gc.collect()  # one encoder at a time fits into memory
    return found


def pruned_copies(
    dense: PreTrainedModel, plans: Sequence[str], ratios: Sequence[float], num_samples: int
) -> Iterator[tuple[str, tuple[PreTrainedModel, PruningPlan]]]:
    """Yield the name, a pruned copy of the model, and its plan, for every kind of plan and ratio.

    Args:
        dense: The model.
        plans: "default" for the default search, "narrow" for the same number of heads and neurons in every layer.
        ratios: Fractions of the encoder's weights to remove.
        num_samples: Calibration samples of 128 random tokens for the default search.
    """
    encoder = find_encoder(dense)
    made = {"narrow": lambda ratio: narrow_plan(encoder, ratio)}
    if "default" in plans:
        config = PruningConfig()
        calibration = calibrate(encoder, _samples(encoder, num_samples), model_loss(dense), moments=True)
        candidates = list_candidates(encoder, calibration, config)

        def search(ratio: float) -> PruningPlan:
            return make_plan(encoder, calibration, PruningConfig(pruning_ratio=ratio), candidates)

        made["default"] = search
    for kind in plans:
        for ratio in ratios:
            with ignore_missed_targets():
                plan = made[kind](ratio)
            model = copy.deepcopy(dense)
            apply_plan(find_encoder(model), plan)
            yield f"{kind} {ratio:g}", (model, plan)


def _samples(encoder: Encoder, count: int) -> list[dict[str, Tensor]]:
    """Return labeled batches of four samples with random tokens."""
    generator = torch.Generator().manual_seed(0)
    length, words = min(128, encoder.max_length), int(encoder.model.config.vocab_size)
    device = encoder.model.device
    return [
        {
            "input_ids": torch.randint(5, words, (size, length), generator=generator).to(device),
            "labels": torch.randint(2, (size,), generator=generator).to(device),
        }
        for size in (min(4, count - start) for start in range(0, count, 4))
    ]


def _sizes(name: str, dense: PreTrainedModel, models: dict[str, Any], plans: dict[str, PruningPlan]) -> Result:
    """Return the numbers of weights of the dense and the pruned encoders."""
    total = encoder_cost(find_encoder(dense)).parameters
    pruned = {}
    for key, plan in plans.items():
        left = encoder_cost(find_encoder(models[key])).parameters
        pruned[key] = {"weights": left, "removed": 1 - left / total, "shapes": plan.config.get("shapes")}
    parameters = sum(parameter.numel() for parameter in dense.parameters())
    config = dense.config
    return {
        "name": name,
        "model_type": config.model_type,
        "attention": attention_implementation(config),
        "parameters": parameters,
        "encoder_weights": total,
        "pruned": pruned,
    }


def _latency(
    models: dict[str, PreTrainedModel], sizes: Sequence[tuple[int, int]], compiled: bool, repeats: int, min_time: float
) -> Iterator[Result]:
    """Yield the measurements at each size, in interleaved rounds."""
    encoders = {name: find_encoder(model) for name, model in models.items()}
    vocabulary, longest = int(models["dense"].config.vocab_size), encoders["dense"].max_length
    modes: dict[str, dict[str, Any]] = {"eager": dict(models)}
    if compiled:
        modes["compiled"] = {name: torch.compile(model, dynamic=False) for name, model in models.items()}
    for batch_size, length in sizes:
        if length > longest:
            continue
        ids = torch.randint(5, vocabulary, (batch_size, length), generator=torch.Generator().manual_seed(0))
        ids = ids.to(models["dense"].device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        flops = {name: encoder_cost(encoder, length).flops for name, encoder in encoders.items()}
        for mode, measured in modes.items():
            times = forward_times(measured, batch, repeats, min_time)
            medians = {name: statistics.median(seconds) for name, seconds in times.items()}
            entry: Result = {"batch_size": batch_size, "length": length, "mode": mode, "models": {}}
            for name, seconds in medians.items():
                speedup, kept = medians["dense"] / seconds, flops[name] / flops["dense"]
                entry["models"][name] = {
                    "seconds": seconds,
                    "fastest": times[name][0],
                    "slowest": times[name][-1],
                    "speedup": speedup,
                    "flops_kept": kept,
                    # The fraction of the saved FLOPs that is saved time.
                    "realized": None if name == "dense" else realized_savings(speedup, kept),
                }
            yield entry


def columns(results: Sequence[Result]) -> list[str]:
    """Return the sizes and modes at which any of the encoders was measured, in order."""
    found = [_column(entry) for result in results for entry in result["latency"]]
    return list(dict.fromkeys(found))


def rows(result: Result, measured: Sequence[str]) -> list[list[str]]:
    """Return the rows of one encoder: its name, the model, the weights removed, and a cell for each size.

    A cell of the dense model is its latency. That of a pruned model is the speedup, and in parentheses the fraction of
    the saved FLOPs that is saved time.
    """
    found = []
    for name in ("dense", *result["pruned"]):
        cells = dict.fromkeys(measured, "")
        for entry in result["latency"]:
            each = entry["models"][name]
            text = f"{1000 * each['seconds']:,.1f} ms"
            cells[_column(entry)] = (
                text if name == "dense" else f"{each['speedup']:.2f} ({100 * each['realized']:.0f} %)"
            )
        removed = f"of {result['encoder_weights'] / 1e6:.1f} M"
        if name != "dense":
            removed = f"{100 * result['pruned'][name]['removed']:.1f} %"
        found.append([result["name"] if name == "dense" else "", name, removed, *cells.values()])
    return found


def markdown(results: Sequence[Result]) -> list[str]:
    """Return the lines of a Markdown table of all encoders."""
    measured = columns(results)
    lines = [["encoder", "model", "removed", *measured], ["---"] * (3 + len(measured))]
    lines += [row for result in results for row in rows(result, measured)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _column(entry: Result) -> str:
    size = f"{entry['batch_size']} x {entry['length']}"
    return size if entry["mode"] == "eager" else f"{size}, {entry['mode']}"


def _table(result: Result) -> Table:
    measured = columns([result])
    title = f"{result['name']}: {result['parameters'] / 1e6:.0f} M parameters, attention={result['attention']}"
    table = Table(title=title, caption="latency of the dense model, and speedups (time saved / FLOPs saved)")
    for column in ("encoder", "model", "removed", *measured):
        table.add_column(column, justify="left" if column in ("encoder", "model") else "right")
    for row in rows(result, measured):
        table.add_row(*row)
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.families")
