"""Write folders that transformers' ``from_pretrained`` reads: the grouped model, or its dense twin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.card import CardFacts, make_card
from pgb_lightning.export.models import ExportedModel, exported_class, recast
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery.checks import matches
from pgb_lightning.surgery.dense_twin import dense_twin
from pgb_lightning.surgery.structure import structure_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def export_huggingface(
    model: PreTrainedModel,
    folder: str | Path,
    plan: PruningPlan | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
) -> Path:
    """Write a pruned model as a folder that ``AutoModelFor....from_pretrained`` loads, bit for bit.

    Whoever loads it imports ``pgb_lightning`` first; without it transformers refuses the unknown model type.

    Args:
        model: A transformers model of a mapped family, dense or grouped, such as ``module.model``.
        folder: Where to write; new or empty.
        plan: The plan it was pruned by; written beside it as ``plan.json``.
        tokenizer: Written beside it where given, so that ``pipeline`` finds it.
        card: What the model card says beyond what the model shows.

    Returns:
        The folder.

    Raises:
        TypeError: ``model`` is no transformers model.
        ValueError: The folder is not empty, the model's class has no counterpart, or the plan made another model.

    Example:
        >>> export_huggingface(module.model, "out/", tokenizer=tokenizer)  # doctest: +SKIP
    """
    exported = to_exported(model)
    if plan is not None and not matches(find_encoder(model), plan):
        raise ValueError("plan made another model than this one; give the plan that this model was pruned by, or none.")
    target = empty_folder(folder)
    exported.save_pretrained(target)
    write_beside(model, target, "huggingface", tokenizer, card, plan)
    return target


def export_dense(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
) -> Path:
    """Write a pruned model's dense twin as a plain transformers folder: zeros instead of structure, equal outputs.

    It is as large and as slow as the dense model was; use it where nothing but transformers can be installed.

    Args:
        model: A transformers model of a mapped family, such as ``module.model``.
        folder: Where to write; new or empty.
        tokenizer: Written beside it where given.
        card: What the model card says beyond what the model shows.

    Returns:
        The folder.

    Raises:
        TypeError: ``model`` is no transformers model.
        ValueError: The folder is not empty.
    """
    _check_model(model)
    target = empty_folder(folder)
    dense_twin(model).save_pretrained(target)
    write_beside(model, target, "dense", tokenizer, card)
    return target


def to_exported(model: PreTrainedModel) -> ExportedModel:
    """Return a copy of a model in the registered class that records its structure.

    Args:
        model: A transformers model of a mapped family, dense or grouped; an exported one is returned as it is.

    Raises:
        TypeError: ``model`` is no transformers model.
        ValueError: Its class has no counterpart, or it holds no mapped encoder.
    """
    _check_model(model)
    if isinstance(model, ExportedModel):
        return model
    target = exported_class(type(model))
    config = recast(model.config, target.config_class, structure_of(find_encoder(model)))
    exported = target(config)
    exported.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
    exported.load_state_dict(model.state_dict())
    exported.train(model.training)
    return exported


def empty_folder(folder: str | Path) -> Path:
    """Make a folder, or take an empty one.

    Raises:
        ValueError: As :func:`check_folder`.
    """
    check_folder(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def check_folder(folder: str | Path) -> None:
    """Require a name at which nothing is and a folder can be made, or an empty folder.

    Raises:
        ValueError: There is a file, or something in the folder, or nothing may be written there.
    """
    if not str(folder):
        raise ValueError("'' names no folder; name a new or an empty one.")
    path = Path(folder)
    nearest = next((parent for parent in (path, *path.absolute().parents) if parent.exists()), path)
    if nearest != path and not nearest.is_dir():
        raise ValueError(f"{str(folder)!r} lies under {str(nearest)!r}, which is a file; name another folder.")
    if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{str(folder)!r} cannot be written: {str(nearest)!r} does not allow it; name another folder.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "a folder with files in it" if path.is_dir() else "a file"
        raise ValueError(f"{str(folder)!r} is {what}; name a new or an empty folder.")


def _check_model(model: object) -> None:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__}, not a transformers model; give the model that it holds, such as "
            "module.model."
        )


def write_beside(
    model: PreTrainedModel,
    folder: Path,
    kind: str,
    tokenizer: PreTrainedTokenizerBase | None,
    card: CardFacts | None,
    plan: PruningPlan | None = None,
) -> None:
    """Write what goes with the weights: tokenizer, plan, model card."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if plan is not None:
        plan.save(folder / "plan.json")
    make_card(model, kind, card, plan).save(folder / "README.md")
