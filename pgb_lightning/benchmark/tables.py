"""Tables of a benchmark for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def realized_savings(speedup: float, flops: float) -> float:
    """Return the fraction of saved time divided by the fraction of saved FLOPs.

    Args:
        speedup: Speedup over the dense model.
        flops: FLOPs of the pruned model, as a fraction of those of the dense model.

    Example:
        >>> realized_savings(speedup=2.0, flops=0.5)
        1.0
    """
    return (1 - 1 / speedup) / (1 - flops) if flops < 1 else float("nan")


def latency_table(row: dict[str, Any], models: dict[str, Any]) -> Table:
    """Return the table of one batch size and length: latency and speedups of every model.

    Args:
        row: An entry of ``latency`` in the results.
        models: The entry ``models`` of the results.
    """
    table = Table(title=f"batch {row['batch_size']} x length {row['length']}: speedup over dense")
    columns = ["eager", "compiled"] if "compiled" in row else ["eager"]
    for column in ("model", "ms (quartiles)", *columns, "attention", "feed-forward", "time saved / FLOPs saved"):
        table.add_column(column, justify="left" if column == "model" else "right")
    dense = models["dense"]["flops_at_128"]
    for name, found in row["eager"].items():
        speedups = [f"{row[column][name]['speedup']:.2f}" for column in columns]
        parts = [f"{times[name]['speedup']:.2f}" for times in row["sublayers"].values()]
        savings = realized_savings(found["speedup"], models[name]["flops_at_128"] / dense)
        table.add_row(name, format_spread(found), *speedups, *parts, "" if name == "dense" else f"{savings:.0%}")
    return table


def runtime_table(row: dict[str, Any], scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Return the table of one batch size and length: latency of every model in every runtime, and its scores.

    Args:
        row: An entry of ``latency`` in the results of a benchmark of runtimes.
        scores: The entry ``scores``, by runtime and model; empty without data.
    """
    table = Table(title=f"batch {row['batch_size']} x length {row['length']}: speedup over the dense model")
    found_scores = [found for models in scores.values() for found in models.values()]
    metrics = list(dict.fromkeys(name for found in found_scores for name in found if not name.endswith("loss")))
    for column in ("runtime", "model", "ms (quartiles)", "over PyTorch fp32", "in the same runtime", *metrics):
        table.add_column(column, justify="left" if column in ("runtime", "model") else "right")
    for runtime, models in row["runtimes"].items():
        for name, found in models.items():
            speedups = [f"{found[key]:.2f}" for key in ("speedup_over_torch", "speedup")]
            own = scores.get(runtime, {}).get(name, {})
            shown = [f"{own[metric]:.4f}" for metric in metrics]
            table.add_row(runtime, name, format_spread(found), *speedups, *shown)
    return table


def format_spread(found: dict[str, float]) -> str:
    """Return a median with quartiles in milliseconds.

    Example:
        >>> format_spread({"median": 0.002, "low": 0.001, "high": 0.004})
        '2.0 (1.0-4.0)'
    """
    return f"{1e3 * found['median']:.1f} ({1e3 * found['low']:.1f}-{1e3 * found['high']:.1f})"


def size_table(results: dict[str, Any]) -> Table:
    """Return the table of size, peak memory and training speedup of every model.

    Args:
        results: The results of the benchmark.
    """
    table = Table(title="size, peak memory and training step")
    for column in ("model", "parameters kept", "bytes kept", "peak memory, MB", "training speedup"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, found in results["models"].items():
        step = results.get("training", {}).get(name)
        memory = found["peak_memory_bytes"]
        table.add_row(
            name,
            f"{found['kept']:.1%}",
            f"{found['bytes_kept']:.1%}",
            "not available" if memory is None else f"{memory / 1e6:,.0f}",
            f"{step['speedup']:.2f}" if step else "",
        )
    return table
