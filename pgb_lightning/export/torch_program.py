"""Export pruned models to a program of ``torch.export``, which PyTorch loads without transformers and this package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.card_facts import CardFacts
from pgb_lightning.export.huggingface import new_folder, write_companion_files
from pgb_lightning.export.onnx import TensorModel, check_inputs, save_config
from pgb_lightning.runtimes.requirements import require_torch
from pgb_lightning.runtimes.silence import silence_exporters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROGRAM_FILE = "model.pt2"


def export_torch(
    model: PreTrainedModel,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
) -> Path:
    """Export a pruned model as a program of ``torch.export``, with dynamic batch size and sequence length.

    The folder has ``model.pt2``, the ``config.json`` of the dense transformers model, and the tokenizer. The program
    takes the token ids, the attention mask and, if the model has them, the token types as positional arguments, and
    returns a tuple. It only needs PyTorch.

    Args:
        model: A transformers model of a supported family, pruned or dense, such as ``module.model``.
        output_dir: The folder to write, new or empty.
        tokenizer: The tokenizer to save in the folder.
        card: Facts for the model card that cannot be read from the model.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: If PyTorch is too old.
        TypeError: If ``model`` is not a transformers model.
        ValueError: If the folder is not empty, the class of the model is not supported, or ``torch.export`` cannot
            trace it.

    Example:
        >>> export_torch(module.model, "out/", tokenizer=tokenizer)  # doctest: +SKIP
    """
    require_torch("torch export")
    check_inputs(model)
    traced = TensorModel(model, weights_right=None)
    program = trace(traced)
    with new_folder(output_dir) as target:
        torch.export.save(program, target / PROGRAM_FILE)
        save_config(traced, target)
        write_companion_files(model, target, PROGRAM_FILE, tokenizer, card)
    return target


def trace(model: TensorModel) -> torch.export.ExportedProgram:
    """Trace a model for any batch size, and any sequence length up to the limit of the model.

    Raises:
        ValueError: If the model cannot be traced, or only with fixed sizes.
    """
    example = torch.full(tuple(model.sizes.values()), 2)
    limits = {"sequence": find_encoder(model.model).max_length}
    axes: dict[int, Any] = {
        number: torch.export.Dim(name, max=limits.get(name)) for number, name in enumerate(model.sizes)
    }
    inputs = (example, torch.ones_like(example), torch.zeros_like(example))[: len(model.inputs)]
    try:
        with silence_exporters(), torch.no_grad():
            return torch.export.export(model, inputs, dynamic_shapes=(tuple(axes for _ in inputs),))
    except Exception as error:  # many types, most of them private
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ValueError(
            f"{type(model.model.to_plain()).__name__} cannot be traced by torch.export for any batch size and length "
            f"({reason}). Use export_huggingface or export_onnx."
        ) from error
