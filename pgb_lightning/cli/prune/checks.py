"""Checks of ``pgb prune``: the Trainer's settings, the inputs of the model, and the trained weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray

from pgb_lightning.cli.prune.settings import PruneSettings
from pgb_lightning.datamodules import TextDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.surgery.checks import is_pruned


@contextmanager
def as_misconfiguration(setting: str = "") -> Iterator[None]:
    """Raise a ``ValueError`` or ``ModuleNotFoundError`` of the block as a ``MisconfigurationException``.

    Args:
        setting: The setting and its value, if the error does not name them.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, ModuleNotFoundError) as error:
        raise MisconfigurationException(f"{setting}: {error}" if setting else str(error)) from None


def check_trainer(settings: PruneSettings) -> None:
    """Check that the Trainer accepts the settings.

    Args:
        settings: The settings of the run.

    Raises:
        MisconfigurationException: If the Trainer rejects a setting.
    """
    given: dict[str, Any] = {"accelerator": settings.accelerator, "precision": settings.precision}
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False
    )
    with as_misconfiguration(f"seed={settings.seed}"):
        L.seed_everything(settings.seed, verbose=False)
    with as_misconfiguration(" with ".join(f"{name}={value!r}" for name, value in given.items())):
        L.Trainer(devices=1, **given, **quiet)


def check_inputs(module: FineTuning, rows: TextDataModule, settings: PruneSettings) -> None:
    """Check that the model can process the rows, and that it is dense if it is to be the teacher.

    Args:
        module: The module with the model.
        rows: The rows.
        settings: The settings of the run.

    Raises:
        MisconfigurationException: If a row is too long or has an unknown token, or the teacher would be pruned.
    """
    if settings.recover == "distill" and is_pruned(find_encoder(module.model)):
        raise MisconfigurationException(
            f"recover='distill' needs a dense model to learn from, but model={settings.model!r} is already pruned. Use "
            "recover='finetune' or 'none' to prune it further, or pass the dense model."
        )
    module.check_length(rows.max_length)
    embeddings: Any = module.model.get_input_embeddings()
    count = len(embeddings.weight)
    for name, values in _columns(rows):
        if name.endswith("input_ids") and values.size and values.max() >= count:
            raise MisconfigurationException(
                f"model={settings.model!r} has {count} tokens in its vocabulary, but its tokenizer produces the token "
                f"id {int(values.max())}. Save the tokenizer that belongs to the model in its folder."
            )


def hash_rows(rows: TextDataModule) -> str:
    """Return a hash of the tokens and labels of the training and validation rows."""
    found = hashlib.sha256()
    for name, values in _columns(rows):
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def are_finite(module: FineTuning) -> bool:
    """Return whether all weights are finite, which they are not after training has diverged."""
    return all(bool(torch.isfinite(weight).all()) for weight in module.model.parameters())


def check_weights(module: FineTuning, settings: PruneSettings) -> None:
    """Check that training has not diverged.

    Args:
        module: The trained module.
        settings: The settings of the run.

    Raises:
        MisconfigurationException: If a weight is not finite.
    """
    if not are_finite(module):
        raise MisconfigurationException(
            f"learning_rate={settings.peak_learning_rate} with precision={settings.precision!r} gave weights that are "
            "not finite. Use a lower learning_rate or another precision, and another output_dir."
        )


def finite(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores that are finite. A correlation is NaN if all labels are equal, for example."""
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _columns(rows: TextDataModule) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the columns of tokens and labels. Columns of lists are flattened, after a column with their lengths."""
    for split in ("train", "validation"):
        table = rows.split(split).with_format("arrow")[:]
        for name in sorted(table.column_names):
            if not name.endswith(("input_ids", "labels")):
                continue
            column = table[name].combine_chunks()
            if hasattr(column, "value_lengths"):
                yield f"{split} {name} lengths", column.value_lengths().to_numpy(zero_copy_only=False)
                column = column.flatten()
            yield f"{split} {name}", column.to_numpy(zero_copy_only=False)
