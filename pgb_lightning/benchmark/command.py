"""The command: measure, tabulate, draw.

Example:
    ::

        pgb benchmark --pruning_ratios [0.5,0.88] --batch_sizes [1,8,32] --lengths [128]
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from pgb_lightning.benchmark import measures
from pgb_lightning.benchmark.latency_figure import draw
from pgb_lightning.benchmark.models import pruned_models, random_model
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.source import read_source
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery.dense_twin import dense_twin

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(
    architecture: str = "bert",
    num_layers: int | None = None,
    pruning_ratios: tuple[float, ...] = (0.5, 0.88),
    num_groups: tuple[int, ...] = (),
    plan: str | None = None,
    ckpt_path: str | None = None,
    batch_sizes: tuple[int, ...] = (1, 8, 32),
    lengths: tuple[int, ...] = (128,),
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "cpu",
    num_threads: int | None = None,
    compiled: bool = False,
    training: bool = True,
    repeats: int = 7,
    min_time: float = 0.2,
    out_dir: str = "runs/benchmark",
) -> dict[str, Any]:
    """Measure pruned models against the dense one, all in one run: interleaved rounds, medians and quartiles.

    The weights are random, which changes neither shapes nor speed. At every ratio there is a model in the paper's
    groups and one with fewer heads and neurons, which is as small and needs no permutation: the best that any shape can
    do. Writes ``benchmark.json`` and, where matplotlib is installed, ``benchmark.svg``.

    Args:
        architecture: A transformers ``model_type`` with a map, in its base size.
        num_layers: Layers, if not as many as the base size has.
        pruning_ratios: Shares of the encoder's weights to remove.
        num_groups: Group numbers, for each of which two models are measured with every matrix in so many groups: drawn
            for each matrix, and the neurons alike in W1 and W2.
        plan: A ``plan.json`` to measure as well; for this architecture and number of layers.
        ckpt_path: A pruned checkpoint of this package's modules to measure as well; the dense model is then its
            dense twin, whatever the architecture and the number of layers.
        batch_sizes: Sequences in a batch.
        lengths: Tokens of a sequence.
        dtype: Type of weights and activations.
        device: Such as "cpu" or "cuda".
        num_threads: CPU threads; torch's own choice if not given.
        compiled: Whether to measure the models under ``torch.compile`` too.
        training: Whether to measure a training step, on the second batch size (or the only one).
        repeats: Rounds.
        min_time: Seconds that one measurement lasts at least.
        out_dir: Folder for the results.

    Returns:
        What is written to ``benchmark.json``.

    Raises:
        ValueError: A setting is out of range, or the plan belongs to another encoder.
    """
    _check(pruning_ratios, batch_sizes, lengths, repeats=repeats, num_layers=num_layers, num_threads=num_threads)
    _check_device(device)
    given = None if plan is None else _read_plan(plan)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    own = None if ckpt_path is None else read_source(ckpt_path).model
    dense = random_model(architecture, num_layers) if own is None else dense_twin(own)
    models = pruned_models(dense, pruning_ratios, num_groups, given)
    if own is not None:
        models["checkpoint"] = own
    for model in models.values():
        model.to(torch.device(device), DTYPES[dtype])  # type: ignore[arg-type]
    results: dict[str, Any] = {
        "settings": {"architecture": dense.config.model_type, "dtype": dtype, "device": device, "repeats": repeats},
        "machine": {"threads": torch.get_num_threads(), "cpu": platform.processor() or platform.machine()},
        "models": {name: _size(model, models["dense"]) for name, model in models.items()},
        "latency": [],
    }
    for length in lengths:
        for batch_size in batch_sizes:
            batch = _batch(models["dense"], batch_size, length)
            row: dict[str, Any] = {"batch_size": batch_size, "length": length}
            row["eager"] = _summary(measures.forward_times(models, batch, repeats, min_time))
            if compiled:
                fast: dict[str, Any] = {name: torch.compile(model) for name, model in models.items()}
                row["compiled"] = _summary(measures.forward_times(fast, batch, repeats, min_time))
            parts = measures.sublayer_times(models, batch, repeats, min_time)
            row["sublayers"] = {name: _summary(times) for name, times in parts.items()}
            results["latency"].append(row)
            _print_latency(row, results["models"])
            _write(results, Path(out_dir))  # what was measured outlives an interruption
    biggest = _batch(models["dense"], max(batch_sizes), max(lengths))
    for name, model in models.items():
        results["models"][name]["peak_memory_bytes"] = measures.peak_memory(model, biggest)
    if training:
        batch = _batch(models["dense"], sorted(batch_sizes)[len(batch_sizes) // 2], lengths[0])
        results["training"] = _summary(measures.training_times(models, batch, repeats, min_time))
    _print_sizes(results)
    _write(results, Path(out_dir))
    draw(results, Path(out_dir) / "benchmark.svg")
    return results


def _write(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(results, indent=2) + "\n")


def _check(ratios: Sequence[float], batch_sizes: Sequence[int], lengths: Sequence[int], **counts: int | None) -> None:
    for name, values in {"batch_sizes": list(batch_sizes), "lengths": list(lengths)}.items():
        if not values or min(values) < 1:
            raise ValueError(f"{name}={values} is out of range: give whole numbers of at least 1.")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is out of range: give a whole number of at least 1.")
    if not all(0 < ratio < 1 for ratio in ratios):
        raise ValueError(f"pruning_ratios={list(ratios)} is out of range: give shares strictly between 0 and 1.")


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device={device!r} cannot be used here ({reason}); give 'cpu' or another.") from None


def _read_plan(path: str) -> PruningPlan:
    try:
        return PruningPlan.load(path)
    except ValueError as error:
        raise ValueError(f"plan={error}") from None


def _batch(model: PreTrainedModel, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Make sequences of random tokens, none of them padding."""
    longest = find_encoder(model).max_length
    if length > longest:
        raise ValueError(f"lengths={length} is out of range: {model.config.model_type!r} takes up to {longest} tokens.")
    ids = torch.randint(5, model.config.vocab_size, (batch_size, length), device=model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _size(model: PreTrainedModel, dense: PreTrainedModel) -> dict[str, Any]:
    cost, full = encoder_cost(find_encoder(model)), encoder_cost(find_encoder(dense))
    stored = measures.encoder_bytes(model)
    return {
        "parameters": cost.parameters,
        "kept": cost.parameters / full.parameters,
        "flops_at_128": cost.flops,
        "encoder_bytes": stored,
        "bytes_kept": stored / measures.encoder_bytes(dense),
    }


def _summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return medians and quartiles in seconds, and how many times faster than dense."""
    dense = statistics.median(times["dense"])
    summary = {}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        median = statistics.median(values)
        summary[name] = {"median": median, "low": low, "high": high, "speedup": dense / median}
    return summary


def realised(speedup: float, flops: float) -> float:
    """Return how much of the FLOPs that were saved is time saved.

    Args:
        speedup: How many times faster than dense.
        flops: FLOPs left, as a share of the dense model's.

    Example:
        >>> realised(speedup=2.0, flops=0.5)
        1.0
    """
    return (1 - 1 / speedup) / (1 - flops) if flops < 1 else float("nan")


def _print_latency(row: dict[str, Any], models: dict[str, Any]) -> None:
    table = Table(title=f"batch {row['batch_size']} x length {row['length']}: times faster than dense")
    columns = ["eager", *(["compiled"] if "compiled" in row else [])]
    for column in ("model", "ms (quartiles)", *columns, "attention", "feed-forward", "FLOPs saved that are time saved"):
        table.add_column(column, justify="left" if column == "model" else "right")
    dense = models["dense"]["flops_at_128"]
    for name, found in row["eager"].items():
        speeds = [f"{row[column][name]['speedup']:.2f}" for column in columns]
        parts = [f"{times[name]['speedup']:.2f}" for times in row["sublayers"].values()]
        share = realised(found["speedup"], models[name]["flops_at_128"] / dense)
        spread = f"{1e3 * found['median']:.1f} ({1e3 * found['low']:.1f}-{1e3 * found['high']:.1f})"
        table.add_row(name, spread, *speeds, *parts, "" if name == "dense" else f"{share:.0%}")
    Console(width=120).print(table)


def _print_sizes(results: dict[str, Any]) -> None:
    table = Table(title="size, memory, and a training step")
    for column in ("model", "parameters kept", "bytes kept", "peak memory, MB", "training, times faster"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, found in results["models"].items():
        step = results.get("training", {}).get(name)
        memory = found["peak_memory_bytes"]
        table.add_row(
            *(name, f"{found['kept']:.1%}", f"{found['bytes_kept']:.1%}"),
            "not available" if memory is None else f"{memory / 1e6:,.0f}",
            f"{step['speedup']:.2f}" if step else "",
        )
    Console(width=120).print(table)
