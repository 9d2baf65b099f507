"""Export to folders for the ``from_pretrained`` of transformers: the pruned model, or its dense twin."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.pruned_config import convert_config
from pgb_lightning.export.card import make_card
from pgb_lightning.export.card_facts import CardFacts
from pgb_lightning.export.registered_models import ExportedModel, exported_class, rebuild
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery.checks import matches
from pgb_lightning.surgery.dense_twin import dense_twin
from pgb_lightning.surgery.record import make_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def export_huggingface(
    model: PreTrainedModel,
    folder: str | Path,
    plan: PruningPlan | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
) -> Path:
    """Export a pruned model to a folder that ``AutoModelFor....from_pretrained`` loads, with equal weights.

    Import ``pgb_lightning`` before loading it. Otherwise transformers raises an error for the unknown model type.

    Args:
        model: A transformers model of a supported family, pruned or dense, such as ``module.model``.
        folder: The folder to write, new or empty.
        plan: The plan with which the model was pruned, to be saved as ``plan.json`` in the folder.
        tokenizer: The tokenizer to save in the folder, so that ``pipeline`` finds it.
        card: Facts for the model card that cannot be read from the model.

    Returns:
        The folder.

    Raises:
        TypeError: If ``model`` is not a transformers model.
        ValueError: If the folder is not empty, the class of the model is not supported, or the plan does not match the
            model.

    Example:
        >>> export_huggingface(module.model, "out/", tokenizer=tokenizer)  # doctest: +SKIP
    """
    exported = to_exported(model)
    if plan is not None and not matches(find_encoder(model), plan):
        raise ValueError("plan does not match the model. Pass the plan that this model was pruned with, or None.")
    with new_folder(folder) as target:
        exported.save_pretrained(target)
        write_companion_files(model, target, "huggingface", tokenizer, card, plan)
    return target


def export_dense(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
) -> Path:
    """Export the dense twin of a pruned model to a plain transformers folder. Removed weights are stored as zeros.

    Its outputs equal those of the pruned model, but it is as large and as slow as the dense model. Use it where only
    transformers can be installed.

    Args:
        model: A transformers model of a supported family, such as ``module.model``.
        folder: The folder to write, new or empty.
        tokenizer: The tokenizer to save in the folder.
        card: Facts for the model card that cannot be read from the model.

    Returns:
        The folder.

    Raises:
        TypeError: If ``model`` is not a transformers model.
        ValueError: If the folder is not empty.
    """
    _check_model(model)
    twin = dense_twin(model)
    with new_folder(folder) as target:
        twin.save_pretrained(target)
        write_companion_files(model, target, "dense", tokenizer, card)
    return target


def to_exported(model: PreTrainedModel) -> ExportedModel:
    """Return a copy of a model as an instance of the registered class, whose configuration records its structure.

    Args:
        model: A transformers model of a supported family, pruned or dense. An exported model is returned unchanged.

    Raises:
        TypeError: If ``model`` is not a transformers model.
        ValueError: If the class of the model is not supported, it has other weights than its class, or it holds no
            supported encoder.
    """
    _check_model(model)
    if isinstance(model, ExportedModel):
        return model
    target = exported_class(type(model))
    config = convert_config(model.config, target.config_class, make_record(find_encoder(model)))
    return cast(ExportedModel, rebuild(model, target, config))


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Create a folder to write to, unless it exists and is empty. If writing fails, it is empty or removed again.

    Raises:
        ValueError: If the path is a file, or a folder that is not empty or not writable.
    """
    check_folder(folder)
    target = Path(folder).expanduser()
    existed = target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        yield target
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        if existed:
            target.mkdir(exist_ok=True)
        raise


def check_folder(folder: str | Path, name: str = "folder") -> None:
    """Raise if a folder cannot be created, or exists and is not empty.

    Args:
        folder: The path of the folder.
        name: The name of the setting, for the message.

    Raises:
        ValueError: If the path is a file, is not empty, or is not writable.
    """
    setting = f"{name}={str(folder)!r}"
    if not str(folder):
        raise ValueError(f"{setting} is empty. Choose a new or an empty folder.")
    path = Path(folder).expanduser()
    nearest = next((parent for parent in (path, *path.absolute().parents) if parent.exists()), path)
    if nearest != path and not nearest.is_dir():
        raise ValueError(f"{setting} is inside {str(nearest)!r}, which is a file. Choose another folder.")
    if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{setting} is not writable: no permission for {str(nearest)!r}. Choose another folder.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        problem = "is not empty" if path.is_dir() else "is a file"
        raise ValueError(f"{setting} {problem}. Choose a new or an empty folder.")


def _check_model(model: object) -> None:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__}, not a transformers model. Pass the transformers model that it holds, "
            "such as module.model."
        )


def write_companion_files(
    model: PreTrainedModel,
    folder: Path,
    kind: str,
    tokenizer: PreTrainedTokenizerBase | None,
    card: CardFacts | None,
    plan: PruningPlan | None = None,
    is_quantized: bool = False,
) -> None:
    """Write the tokenizer, the plan and the model card."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if plan is not None:
        plan.save(folder / "plan.json")
    make_card(model, kind, card, plan, is_quantized).save(folder / "README.md")
