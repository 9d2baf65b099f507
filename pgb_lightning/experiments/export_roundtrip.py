"""Export a pruned checkpoint to every format, load it again, and compare outputs, file sizes, speed and scores.

Run as ``python -m pgb_lightning.experiments.export_roundtrip --ckpt_path best.ckpt``.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.huggingface import export_dense, export_huggingface
from pgb_lightning.export.onnx import export_onnx, output_names
from pgb_lightning.export.pruned_checkpoint import PrunedCheckpoint, read_checkpoint
from pgb_lightning.export.registered_models import auto_class
from pgb_lightning.export.sessions import Run, onnx_run
from pgb_lightning.latency import compare_latency
from pgb_lightning.modules import TextClassification
from pgb_lightning.modules.metrics import make_metrics
from pgb_lightning.runtimes.requirements import require_onnx

Batch = Mapping[str, Tensor]

#: (Batch size, length) of the batches on which outputs are compared; lengths are limited to the model's maximum.
SHAPES = ((1, 1), (1, 7), (3, 32), (8, 128), (2, 300))

#: Prefixes of the formats that are timed; the other formats run the same code as "PyTorch, pruned".
TIMED = ("PyTorch", "ONNX")


def run(
    ckpt_path: str,
    report: str | None = None,
    data_dir: str | None = None,
    batch_sizes: list[int] | None = None,
    length: int = 128,
    repeats: int = 7,
    compiled: bool = False,
) -> dict[str, dict[str, float]]:
    """Export a checkpoint to every format, load each, and compare.

    Args:
        ckpt_path: Checkpoint of a pruned TextClassification or QuestionAnswering.
        report: JSON file for the results.
        data_dir: Folder with the validation set of the checkpoint's GLUE task, on which every format is scored.
        batch_sizes: Batch sizes for timing; 1 and 32 by default.
        length: Tokens per sequence for timing.
        repeats: Rounds of timing.
        compiled: Whether to also run the pruned model and its dense twin under ``torch.compile``, which takes minutes.

    Returns:
        By format: the largest difference of any output from the checkpoint's, the size of the weights file in
        megabytes, milliseconds per batch, and scores.

    Raises:
        MisconfigurationException: If a setting is out of range or does not apply to the checkpoint, or the packages of
            the extra "onnx" are not installed.
    """
    try:
        require_onnx()
    except ModuleNotFoundError as error:
        raise MisconfigurationException(str(error)) from None
    checkpoint = read_checkpoint(ckpt_path)
    limit = find_encoder(checkpoint.model).max_length
    if not 1 <= length <= limit:
        raise MisconfigurationException(f"length={length} is out of range. This model accepts 1 to {limit} tokens.")
    if data_dir is not None and not (isinstance(checkpoint.module, TextClassification) and checkpoint.module.task):
        raise MisconfigurationException(f"data_dir={data_dir!r} requires a checkpoint of a GLUE task. Remove data_dir.")
    with tempfile.TemporaryDirectory() as folder:
        runs, found = _export_all(checkpoint, Path(folder), compiled)
        shapes = [(size, min(tokens, limit)) for size, tokens in SHAPES]
        for name, difference in differences(runs, [random_batch(checkpoint.model, *shape) for shape in shapes]).items():
            found[name]["largest difference"] = difference
        for size in [1, 32] if batch_sizes is None else batch_sizes:
            batch = random_batch(checkpoint.model, size, length, padded=False)
            timed = {name: partial(call, batch) for name, call in runs.items() if name.startswith(TIMED)}
            for name, seconds in compare_latency(timed, repeats).items():
                found[name][f"ms, batch {size}"] = 1e3 * seconds
        if data_dir is not None:
            for name, scores in _scores(checkpoint, runs, data_dir).items():
                found[name].update(scores)
    _print(found, f"length {length}, {torch.get_num_threads()} threads")
    if report is not None:
        Path(report).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _export_all(
    checkpoint: PrunedCheckpoint, folder: Path, compiled: bool
) -> tuple[dict[str, Run], dict[str, dict[str, float]]]:
    """Write and reload every format; return a function that runs each, and its file size in megabytes."""
    model, auto = checkpoint.model, auto_class(checkpoint.model)
    export_huggingface(model, folder / "huggingface", checkpoint.plan, checkpoint.tokenizer, checkpoint.card)
    reloaded = auto.from_pretrained(folder / "huggingface")
    reloaded.save_pretrained(folder / "again")
    settings = {
        name: value for name, value in checkpoint.module.hparams.items() if name in ("task", "num_labels", "version")
    }
    back = type(checkpoint.module)(str(folder / "huggingface"), **settings)
    dense = auto.from_pretrained(export_dense(model, folder / "dense"))
    models = {
        "PyTorch, pruned": (model, "huggingface"),
        "Hugging Face folder": (reloaded, "huggingface"),
        "the same, saved again": (auto.from_pretrained(folder / "again"), "again"),
        "back in a LightningModule": (back.eval().model, "huggingface"),
        "PyTorch, dense twin": (dense, "dense"),
    }
    # Copy the weights: those of a memory-mapped file may be unaligned, which changes the rounding of products with few
    # rows (by about 1e-9) and is not a loss of the format.
    runs: dict[str, Run] = {name: torch_run(copy.deepcopy(model)) for name, (model, _) in models.items()}
    files = {name: folder / subfolder / "model.safetensors" for name, (_, subfolder) in models.items()}
    for label, exported in (("dense twin", dense), ("pruned", reloaded)):
        if compiled:
            name = f"PyTorch compiled, {label}"
            runs[name], files[name] = torch_run(exported, compiled=True), files[f"PyTorch, {label}"]
        for kind, quantize in (("ONNX", None), ("ONNX int8", "int8-dynamic")):
            name = f"{kind}, {label}"
            target = export_onnx(exported, folder / name, quantize=quantize)  # type: ignore[arg-type]
            [files[name]] = target.glob("onnx/*.onnx")
            runs[name] = onnx_run(files[name])
    return runs, {name: {"megabytes": files[name].stat().st_size / 1e6} for name in runs}


def torch_run(model: PreTrainedModel, compiled: bool = False) -> Run:
    """Make a function that runs a transformers model on a batch and returns its outputs, without hidden states."""
    names = output_names(model)
    forward: Callable[..., Any] = torch.compile(model, dynamic=True) if compiled else model

    def call(batch: Batch) -> list[Tensor]:
        with torch.inference_mode():
            output = forward(**batch)
        return [output[name] for name in names]

    return call


def random_batch(model: PreTrainedModel, size: int, length: int, padded: bool = True) -> dict[str, Tensor]:
    """Draw random tokens with a fixed seed; if ``padded``, rows have different lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, length + 1, (size, 1), generator=generator) if padded else torch.full((size, 1), length)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    padding = int(model.config.pad_token_id or 0)
    tokens = torch.randint(padding + 1, int(model.config.vocab_size), (size, length), generator=generator)
    return {"input_ids": torch.where(mask.bool(), tokens, padding), "attention_mask": mask}


def differences(runs: Mapping[str, Run], batches: Iterable[Batch]) -> dict[str, float]:
    """Return the largest difference of each run's outputs from the first run's, over real tokens."""
    largest = dict.fromkeys(runs, 0.0)
    for batch in batches:
        references: list[Tensor] = []
        for name, call in runs.items():
            outputs = call(batch)
            references = references or outputs
            for output, reference in zip(outputs, references, strict=True):
                difference = (output - reference).abs()
                if difference.shape[:2] == batch["attention_mask"].shape:  # one output per token
                    difference = difference[batch["attention_mask"].bool()]
                largest[name] = max(largest[name], float(difference.max()))
    return largest


def _scores(checkpoint: PrunedCheckpoint, runs: Mapping[str, Run], data_dir: str) -> dict[str, dict[str, float]]:
    """Score the timed formats on the validation set of the checkpoint's task."""
    module = checkpoint.module
    assert isinstance(module, TextClassification)
    assert module.task is not None
    name = module.task.name
    length = min(128, find_encoder(module.model).max_length)
    data = GLUEDataModule(name, str(module.hparams["model_name_or_path"]), data_dir, max_length=length)
    data.prepare_data()
    data.setup("validate")
    loaders = data.val_dataloader()
    batches = list(loaders[0] if isinstance(loaders, list) else loaders)
    scores = {}
    for run_name, call in runs.items():
        if run_name.startswith(TIMED):
            metrics = make_metrics(module.task, module.num_labels)
            for batch in batches:
                [logits] = call({name: value for name, value in batch.items() if name != "labels"})
                metrics.update(logits.squeeze(-1) if module.num_labels == 1 else logits.argmax(-1), batch["labels"])
            scores[run_name] = {name: 100 * float(value) for name, value in metrics.compute().items()}
    return scores


def _print(found: Mapping[str, Mapping[str, float]], title: str) -> None:
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    table = Table(title=f"Round trips ({title})")
    table.add_column("format")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in found.items():
        table.add_row(name, *(_format(column, row.get(column)) for column in columns))
    Console(width=120).print(table)


def _format(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if column == "largest difference" and value else f"{value:.1f}"


if __name__ == "__main__":
    auto_cli(run, as_positional=False, prog="python -m pgb_lightning.experiments.export_roundtrip")
