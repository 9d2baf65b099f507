"""The command ``pgb benchmark``.

Example:
    ::

        pgb benchmark --pruning_ratios [0.5,0.88] --batch_sizes [1,8,32] --lengths [128]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from transformers import PreTrainedModel

from pgb_lightning.atomic_write import write_json
from pgb_lightning.benchmark import measures
from pgb_lightning.benchmark.devices import DTYPES, check_device, describe_machine
from pgb_lightning.benchmark.latency_figure import draw_latency
from pgb_lightning.benchmark.models import pruned_models, random_model
from pgb_lightning.benchmark.runtimes import Runtime, check_runtimes, loaded_runs, measure_runs
from pgb_lightning.benchmark.tables import latency_table, runtime_table, size_table
from pgb_lightning.benchmark.task import Task, check_data_settings
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.pruned_checkpoint import read_checkpoint
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery.dense_twin import dense_twin

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


def run(
    architecture: str = "bert",
    num_layers: int | None = None,
    pruning_ratios: tuple[float, ...] = (0.5, 0.88),
    num_groups: tuple[int, ...] = (),
    plan: str | None = None,
    ckpt_path: str | None = None,
    data: str | None = None,
    model: str | None = None,
    pruned: tuple[str, ...] = (),
    text_columns: list[str] | str | None = None,
    label_column: str | None = None,
    batch_sizes: tuple[int, ...] = (1, 8, 32),
    lengths: tuple[int, ...] = (128,),
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "cpu",
    num_threads: int | None = None,
    compiled: bool = False,
    compile_mode: CompileMode = "default",
    runtimes: tuple[Runtime, ...] = (),
    training: bool = True,
    repeats: int = 7,
    min_time: float = 0.2,
    out_dir: str = "runs/benchmark",
) -> dict[str, Any]:
    """Measure pruned models and the dense model in one run: interleaved rounds, medians and quartiles.

    The weights are random, which affects neither shapes nor latency. For every ratio, there is a model with the paper's
    groups and a model with fewer heads and neurons. The latter has the same number of weights and needs no permutation,
    so its latency is the lower bound. Writes ``benchmark.json`` and, if matplotlib is installed, ``benchmark.svg``.

    Args:
        architecture: The transformers ``model_type`` of a supported family, for its base size, or the name of a
            published encoder such as "ModernBERT-base" or "deberta-v3-base".
        num_layers: Number of layers; by default that of the configuration.
        pruning_ratios: Fractions of the encoder's weights to remove.
        num_groups: Group numbers. For each, two models with that number of groups in every matrix are measured: one
            with random groups in each matrix, and one whose W1 and W2 share the groups of neurons.
        plan: A ``plan.json`` to also measure, for this ``model_type`` and number of layers.
        ckpt_path: A pruned checkpoint of TextClassification, TokenClassification or QuestionAnswering to also measure.
            Its dense twin is then the dense model, and ``architecture`` and ``num_layers`` are ignored.
        data: A table of texts on which to score the models in all ``runtimes``: a file, a folder of files or a name on
            the Hub, as for ``pgb prune``. Reports the score of each model in each runtime next to its speed, and the
            agreement with the dense model, which needs no labels. ``pruning_ratios`` are then those of copies of
            ``model``, which are pruned in one shot.
        model: The dense, fine-tuned model that is scored on ``data``: a folder, a name on the Hub, or a checkpoint.
        pruned: Pruned models of the same task to also measure: folders of ``pgb prune`` or checkpoints.
        text_columns: The columns of texts in ``data``; detected if there is only one choice.
        label_column: The column of labels in ``data``; detected by common names if omitted.
        batch_sizes: Sequences per batch.
        lengths: Tokens per sequence.
        dtype: Data type of weights and activations.
        device: The device, such as "cpu" or "cuda".
        num_threads: Number of CPU threads; by default chosen by torch.
        compiled: Whether to also measure the models under ``torch.compile``.
        compile_mode: The mode of ``torch.compile``. "reduce-overhead" replays CUDA graphs, which helps if launching the
            kernels takes longer than running them, as for small batches and the narrow layers of pruned models.
        runtimes: Runtimes in which to measure inference, instead of all other measurements: "torch", "torch-bf16",
            "torch-export", "onnxruntime", "onnxruntime-int8", "onnxruntime-int8-dynamic", "openvino",
            "openvino-bf16" and "openvino-int8". All have the same number of threads, and all models are in memory at
            once.
        training: Whether to measure a training step, at the middle batch size.
        repeats: Number of rounds.
        min_time: Minimum duration of one measurement, in seconds.
        out_dir: Folder for the results.

    Returns:
        The content of ``benchmark.json``.

    Raises:
        MisconfigurationException: If a package of a runtime is not installed, or ``data`` or a model of it cannot be
            read.
        ValueError: If a setting is out of range, settings contradict each other, or the plan does not match the
            encoder.
    """
    _check(pruning_ratios, batch_sizes, lengths, repeats=repeats, num_layers=num_layers, num_threads=num_threads)
    check_device(device)
    if compile_mode != "default" and not compiled:
        raise ValueError(f"compile_mode={compile_mode!r} has no effect without compiled=true. Set both, or neither.")
    _check_runtimes(runtimes, dtype, device, compiled)
    check_data_settings(
        data,
        model,
        runtimes,
        pruned=pruned,
        text_columns=text_columns,
        label_column=label_column,
        num_layers=num_layers,
        num_groups=num_groups,
        plan=plan,
        ckpt_path=ckpt_path,
    )
    given = None if plan is None else _read_plan(plan)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    task, console = None, Console(width=120)
    if data is not None and model is not None:
        columns = {"text_columns": text_columns, "label_column": label_column}
        with TemporaryDirectory() as folder:
            task = Task.load(model, pruned, pruning_ratios, data, columns, Path(folder), console)
    models = (
        _models(architecture, num_layers, pruning_ratios, num_groups, given, ckpt_path) if task is None else task.models
    )
    dense = models["dense"]
    for each in models.values():
        each.to(torch.device(device), DTYPES[dtype])  # type: ignore[arg-type]
    results: dict[str, Any] = {
        "settings": {"architecture": dense.config.model_type, "dtype": dtype, "device": device, "repeats": repeats},
        "machine": describe_machine(device),
        "models": {name: _size(each, dense) for name, each in models.items()},
        "latency": [],
    }
    if runtimes:
        batches = [_batch(dense, batch_size, length) for length in lengths for batch_size in batch_sizes]
        calibration = batches[:1] if task is None else task.calibration()
        with loaded_runs(models, runtimes, calibration, console) as runs:
            scores = results["scores"] = {} if task is None else task.score(runs, console)
            for row in measure_runs(runs, batches, repeats, min_time):
                results["latency"].append(row)
                console.print(runtime_table(row, scores))
                _write(results, Path(out_dir))
        return results
    for length in lengths:
        for batch_size in batch_sizes:
            batch = _batch(dense, batch_size, length)
            row = {"batch_size": batch_size, "length": length}
            row["eager"] = measures.summarize(measures.forward_times(models, batch, repeats, min_time))
            if compiled:
                compiled_models: dict[str, Any] = {
                    name: torch.compile(each, mode=compile_mode) for name, each in models.items()
                }
                row["compiled"] = measures.summarize(measures.forward_times(compiled_models, batch, repeats, min_time))
            parts = measures.sublayer_times(models, batch, repeats, min_time)
            row["sublayers"] = {name: measures.summarize(times) for name, times in parts.items()}
            results["latency"].append(row)
            console.print(latency_table(row, results["models"]))
            _write(results, Path(out_dir))  # keep the results if the run is interrupted
    largest = _batch(dense, max(batch_sizes), max(lengths))
    for name, each in models.items():
        results["models"][name]["peak_memory_bytes"] = measures.peak_memory(each, largest)
    if training:
        batch = _batch(dense, sorted(batch_sizes)[len(batch_sizes) // 2], lengths[0])
        results["training"] = measures.summarize(measures.training_times(models, batch, repeats, min_time))
    console.print(size_table(results))
    _write(results, Path(out_dir))
    draw_latency(results, Path(out_dir) / "benchmark.svg")
    return results


def _models(
    architecture: str,
    num_layers: int | None,
    ratios: Sequence[float],
    num_groups: Sequence[int],
    plan: PruningPlan | None,
    ckpt_path: str | None,
) -> dict[str, PreTrainedModel]:
    """Return models with random weights, or those that belong to a checkpoint."""
    pruned = None if ckpt_path is None else read_checkpoint(ckpt_path).model
    dense = random_model(architecture, num_layers) if pruned is None else dense_twin(pruned)
    models = pruned_models(dense, ratios, num_groups, plan)
    if pruned is not None:
        models["checkpoint"] = pruned
    return models


def _write(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "benchmark.json", results)


def _check(ratios: Sequence[float], batch_sizes: Sequence[int], lengths: Sequence[int], **counts: int | None) -> None:
    for name, values in {"batch_sizes": list(batch_sizes), "lengths": list(lengths)}.items():
        if not values or min(values) < 1:
            raise ValueError(f"{name}={values} is out of range. Use integers of at least 1.")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} is out of range. Use an integer of at least 1.")
    if not all(0 < ratio < 1 for ratio in ratios):
        raise ValueError(f"pruning_ratios={list(ratios)} is out of range. Use ratios strictly between 0 and 1.")


def _check_runtimes(runtimes: Sequence[str], dtype: str, device: str, compiled: bool) -> None:
    try:
        check_runtimes(runtimes, dtype, device, compiled)
    except ModuleNotFoundError as error:
        raise MisconfigurationException(f"runtimes={list(runtimes)}: {error}") from None


def _read_plan(path: str) -> PruningPlan:
    try:
        return PruningPlan.load(path)
    except ValueError as error:
        raise ValueError(f"plan={error}") from None


def _batch(model: PreTrainedModel, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Create a batch of random tokens without padding."""
    longest = find_encoder(model).max_length
    if length > longest:
        raise ValueError(
            f"lengths={length} is out of range. {model.config.model_type!r} accepts up to {longest} tokens."
        )
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
