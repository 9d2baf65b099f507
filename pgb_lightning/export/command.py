"""The command ``pgb export``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pgb_lightning.export import push
from pgb_lightning.export.calibration_file import check_calibration_file, read_calibration_file
from pgb_lightning.export.huggingface import check_folder, export_dense, export_huggingface
from pgb_lightning.export.onnx import export_onnx
from pgb_lightning.export.openvino import export_openvino
from pgb_lightning.export.pruned_checkpoint import PrunedCheckpoint, read_checkpoint
from pgb_lightning.export.push import check_repo_id
from pgb_lightning.export.torch_program import export_torch
from pgb_lightning.runtimes.requirements import require_onnx, require_openvino, require_torch

#: Formats and quantizations that need texts for the ranges of activations.
CALIBRATED = (("onnx", "int8"), ("openvino", "int8"))


def run_export(
    ckpt_path: str,
    output_dir: str,
    format: Literal["huggingface", "dense", "onnx", "openvino", "torch"] = "huggingface",
    quantize: Literal["int8", "int8-dynamic"] | None = None,
    calibration: str | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Export a pruned checkpoint to a folder for transformers, onnxruntime or OpenVINO.

    Args:
        ckpt_path: A pruned checkpoint of a module of this package.
        output_dir: The folder to write, new or empty.
        format: "huggingface": small, loaded by transformers after ``import pgb_lightning``; "dense": a plain
            transformers model with zeros, as large as before pruning; "onnx" and "openvino": small, for onnxruntime and
            OpenVINO; "torch": small, a torch.export program that only needs PyTorch.
        quantize: "int8" for integer weights and fixed ranges of activations, with format "onnx" or "openvino";
            "int8-dynamic" with format "onnx" for ranges computed at run time, which needs no calibration and is less
            exact.
        calibration: A CSV, TSV, JSON lines or parquet file with texts like those of the task, such as its training
            rows, for fixed ranges of activations. The columns are those of the checkpoint's GLUE task, or else the
            first, or first two, columns with texts.
        push_to_hub: Name of a Hub repository to upload the folder to, such as "me/my-model".

    Raises:
        MisconfigurationException: If a setting is invalid, or a package is missing.
    """
    _check(format, quantize, calibration)
    try:
        check_folder(output_dir, name="output_dir")
        if push_to_hub is not None:
            check_repo_id(push_to_hub)
        if format == "onnx":
            require_onnx()
        elif format == "openvino":
            require_openvino()
        elif format == "torch":
            require_torch("torch export")
    except (ValueError, ModuleNotFoundError) as error:
        raise MisconfigurationException(str(error)) from None
    checkpoint = read_checkpoint(ckpt_path)
    model, tokenizer, card = checkpoint.model, checkpoint.tokenizer, replace(checkpoint.card, repo_id=push_to_hub)
    batches = None if calibration is None else _read_batches(calibration, checkpoint)
    if format == "huggingface":
        folder = export_huggingface(model, output_dir, checkpoint.plan, tokenizer, card)
    elif format == "dense":
        folder = export_dense(model, output_dir, tokenizer, card)
    elif format == "onnx":
        folder = export_onnx(model, output_dir, tokenizer, card, quantize, batches)
    elif format == "torch":
        folder = export_torch(model, output_dir, tokenizer, card)
    else:
        folder = export_openvino(model, output_dir, tokenizer, card, "int8" if quantize else None, batches)
    checkpoint.module.write_companion_files(folder)
    rank_zero_info(f"Wrote {folder}: {', '.join(_list_files(folder))}.")
    if push_to_hub is not None:
        rank_zero_info(f"Pushed to {push.push_to_hub(folder, push_to_hub)}.")


def _check(format: str, quantize: str | None, calibration: str | None) -> None:
    """Raise if the settings are not compatible."""
    if quantize is not None and format not in ("onnx", "openvino"):
        raise MisconfigurationException(
            f"quantize={quantize!r} requires format='onnx' or format='openvino', but format={format!r}. Change one of "
            "the two."
        )
    if quantize == "int8-dynamic" and format == "openvino":
        raise MisconfigurationException(
            "quantize='int8-dynamic' requires format='onnx', but format='openvino'. Use quantize='int8', with "
            "calibration."
        )
    needed = (format, quantize) in CALIBRATED
    if needed and calibration is None:
        raise MisconfigurationException(
            f"quantize={quantize!r} with format={format!r} needs calibration=FILE, a table with texts "
            "like those of the task, but calibration=None. Pass the training rows."
            + (" Or use quantize='int8-dynamic', which needs none and is less exact." if format == "onnx" else "")
        )
    if calibration is not None and not needed:
        raise MisconfigurationException(
            f"calibration={calibration!r} is not used with format={format!r} and quantize={quantize!r}. Omit it."
        )
    if calibration is not None:
        check_calibration_file(calibration)


def _read_batches(calibration: str, checkpoint: PrunedCheckpoint) -> list[dict[str, Tensor]]:
    if checkpoint.tokenizer is None:
        raise MisconfigurationException(
            f"calibration={calibration!r} needs the tokenizer of the model, which could not be read (see the warning)."
        )
    task = getattr(checkpoint.module, "task", None)
    return read_calibration_file(calibration, checkpoint.tokenizer, task.text_columns if task else ())


def _list_files(folder: Path) -> list[str]:
    """List the files of a folder with their sizes, largest first."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = sorted(((path.stat().st_size, path.relative_to(folder).as_posix()) for path in files), reverse=True)
    return [f"{name} ({size / 1e6:.1f} MB)" if size >= 1e5 else name for size, name in sizes]
