r"""What integer weights and products cost: how far they move logits, and the scores of dense and pruned models.

Every model is quantized for onnxruntime, dynamically (``int8``) and statically (``int8-static``), and for OpenVINO.
Pruned models are one-shot; checkpoints of re-finetuned ones can be added.

Example:
    ::

        python -m pgb_lightning.experiments.quantization cola dense.ckpt --data_dir DIR --ratios [0.5,0.88]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pgb_lightning.config import PruningConfig
from pgb_lightning.experiments.checkpoint_files import require_file
from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.experiments.missed_targets import ignore_missed_targets
from pgb_lightning.export.onnx import TensorModel, write_graph
from pgb_lightning.export.onnx_quantization import quantize_onnx
from pgb_lightning.export.openvino import convert_onnx
from pgb_lightning.export.sessions import Run, onnx_run, openvino_run
from pgb_lightning.glue_tasks import GLUETask, get_task
from pgb_lightning.modules import TextClassification
from pgb_lightning.modules.metrics import make_metrics
from pgb_lightning.pruning import make_plan
from pgb_lightning.runtimes.requirements import require_openvino

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Moved:
    """A quantized model compared with the same model in single precision.

    Args:
        score: The task's first metric, in percent.
        rms: Root mean square of the differences of the logits.
        largest: The largest difference of a logit.
        changed: Fraction of predictions that differ; 0 for regression.
    """

    score: float
    rms: float
    largest: float
    changed: float


def run(
    task: str,
    ckpt_path: str,
    data_dir: str | None = None,
    ratios: tuple[float, ...] = (0.5, 0.88),
    pruned_ckpts: tuple[str, ...] = (),
    calibration_rows: int = 256,
    num_threads: int = 1,
    out: str | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Quantize a dense model and pruned ones in every way, and print scores and differences of logits.

    Args:
        task: A GLUE task.
        ckpt_path: Lightning checkpoint of a dense ``TextClassification``.
        data_dir: Local folder of parquet files; the Hub if not given.
        ratios: Values of ``pruning_ratio`` for pruned models that are not re-finetuned.
        pruned_ckpts: Checkpoints of re-finetuned pruned models to measure too.
        calibration_rows: Number of training rows from which ranges of activations are taken, rounded up to batches.
        num_threads: CPU threads.
        out: JSON file for the results.

    Returns:
        What was measured, by model and kind.

    Raises:
        MisconfigurationException: If the packages of the extra ``openvino`` are not installed.
        ValueError: If a ratio or ``calibration_rows`` is out of range, or a checkpoint does not exist.
    """
    try:
        require_openvino()
    except ModuleNotFoundError as error:
        raise MisconfigurationException(str(error)) from None
    for path in (ckpt_path, *pruned_ckpts):
        require_file(path)
    for ratio in ratios:
        PruningConfig(pruning_ratio=ratio)  # raises if out of range
    if calibration_rows < 1:
        raise ValueError(f"calibration_rows={calibration_rows} is out of range. Use an integer of at least 1.")
    torch.set_num_threads(num_threads)
    reference = DenseReference.load(task, ckpt_path, data_dir)
    calibration = list(_take(reference.baselines.batches, calibration_rows))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, module in _models(reference, ratios, pruned_ckpts):
        kinds = measure(module, calibration, reference.batches, get_task(task))
        found[name] = {kind: asdict(moved) for kind, moved in kinds.items()}
    Console(width=120).print(tabulate(found))
    if out is not None:
        Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def measure(
    module: TextClassification, calibration: Sequence[Batch], batches: Sequence[Batch], task: GLUETask
) -> dict[str, Moved]:
    """Quantize a model in every way and compare it with itself in single precision.

    Args:
        module: The module, in eval mode.
        calibration: Batches from which the ranges of activations are taken.
        batches: Batches with labels, on which the models are compared.
        task: Their task.

    Returns:
        What was measured by kind. The first kind is ``"fp32"``, the model itself.
    """
    with TemporaryDirectory() as folder, torch.inference_mode():
        source, target = Path(folder) / "model.onnx", Path(folder)
        with torch.inference_mode(mode=False):
            write_graph(TensorModel(module.model, weights_right=True), source)
        convert_onnx(source, target / "openvino.xml", calibration)
        runs: dict[str, Run] = {
            "fp32": lambda batch: [module.model(input_ids=batch["input_ids"], **_others(batch)).logits],
            "int8": onnx_run(quantize_onnx(source, target / "dynamic.onnx")),
            "int8-static": onnx_run(quantize_onnx(source, target / "static.onnx", calibration)),
            "openvino int8": openvino_run(target / "openvino.xml"),
        }
        logits = {kind: [call(batch)[0] for batch in batches] for kind, call in runs.items()}
    labels = torch.cat([batch["labels"] for batch in batches])
    joined = {kind: torch.cat(each).float() for kind, each in logits.items()}
    return {kind: _compare(each, joined["fp32"], labels, task) for kind, each in joined.items()}


def tabulate(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Make a table of what was measured.

    Args:
        found: The result of :func:`run`.
    """
    table = Table(title="score, and differences of logits from single precision")
    for column in ("model", "kind", "score", "rms", "largest", "predictions changed"):
        table.add_column(column, justify="left" if column in ("model", "kind") else "right")
    for name, kinds in found.items():
        for kind, moved in kinds.items():
            numbers = [f"{moved['score']:.2f}", f"{moved['rms']:.3f}", f"{moved['largest']:.3f}"]
            table.add_row(name, kind, *numbers, f"{moved['changed']:.2%}")
    return table


def _models(
    reference: DenseReference, ratios: Iterable[float], pruned_ckpts: Iterable[str]
) -> Iterator[tuple[str, TextClassification]]:
    """Yield the models with their names, one after the other."""
    yield "dense", reference.module
    for ratio in ratios:
        config = PruningConfig(pruning_ratio=ratio)
        with ignore_missed_targets():
            plan = make_plan(reference.encoder, reference.statistics, config)
        yield f"{ratio:.0%} removed", reference.pruned(plan, config)
    for path in pruned_ckpts:
        yield path, TextClassification.load_from_checkpoint(path, map_location="cpu").eval()


def _take(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Yield batches until there are enough rows."""
    for batch in batches:
        if rows <= 0:
            return
        rows -= len(batch["input_ids"])
        yield batch


def _others(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("attention_mask", "token_type_ids") if name in batch}


def _compare(logits: Tensor, plain: Tensor, labels: Tensor, task: GLUETask) -> Moved:
    decide: Callable[[Tensor], Any] = (lambda x: x.squeeze(-1)) if task.is_regression else (lambda x: x.argmax(-1))
    metrics = make_metrics(task, task.num_labels)
    metrics.update(decide(logits), labels)
    difference = logits - plain
    changed = 0.0 if task.is_regression else float((decide(logits) != decide(plain)).float().mean())
    return Moved(
        score=100 * float(metrics.compute()[task.metrics[0]]),
        rms=float(difference.square().mean().sqrt()),
        largest=float(difference.abs().max()),
        changed=changed,
    )


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.quantization")
