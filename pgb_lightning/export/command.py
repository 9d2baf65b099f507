"""The command ``pgb export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info

from pgb_lightning.export.huggingface import check_folder, export_dense, export_huggingface
from pgb_lightning.export.onnx import export_onnx, require_onnx
from pgb_lightning.export.pruned_checkpoint import read_checkpoint


def run_export(
    ckpt_path: str,
    output_dir: str,
    format: Literal["huggingface", "dense", "onnx"] = "huggingface",
    quantize: Literal["int8"] | None = None,
) -> None:
    """Export a pruned checkpoint to a folder for transformers or onnxruntime.

    Args:
        ckpt_path: A pruned checkpoint of TextClassification or QuestionAnswering.
        output_dir: The folder to write, new or empty.
        format: "huggingface": small, loaded by transformers after ``import pgb_lightning``; "dense": a plain
            transformers model with zeros, as large as before pruning; "onnx": small, for onnxruntime.
        quantize: "int8" for an ONNX file with integer weights.

    Raises:
        MisconfigurationException: If a setting is invalid, or a package is missing.
    """
    if quantize is not None and format != "onnx":
        raise MisconfigurationException(
            f"quantize={quantize!r} requires format='onnx', but format={format!r}. Change one of the two."
        )
    try:
        check_folder(output_dir, name="output_dir")
        if format == "onnx":
            require_onnx()
    except (ValueError, ModuleNotFoundError) as error:
        raise MisconfigurationException(str(error)) from None
    checkpoint = read_checkpoint(ckpt_path)
    if format == "huggingface":
        folder = export_huggingface(
            checkpoint.model, output_dir, checkpoint.plan, checkpoint.tokenizer, checkpoint.card
        )
    elif format == "dense":
        folder = export_dense(checkpoint.model, output_dir, checkpoint.tokenizer, checkpoint.card)
    else:
        folder = export_onnx(checkpoint.model, output_dir, checkpoint.tokenizer, checkpoint.card, quantize)
    rank_zero_info(f"Wrote {folder}: {', '.join(_list_files(folder))}.")


def _list_files(folder: Path) -> list[str]:
    """List the files of a folder with their sizes, largest first."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = sorted(((path.stat().st_size, path.relative_to(folder).as_posix()) for path in files), reverse=True)
    return [f"{name} ({size / 1e6:.1f} MB)" if size >= 1e5 else name for size, name in sizes]
