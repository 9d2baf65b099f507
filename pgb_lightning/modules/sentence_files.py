"""The files in which sentence-transformers stores how a model is used: parts, prompts, activation, longest text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers.utils.hub import cached_file

from pgb_lightning.packaged import resolve_model

#: The parts of a model, its prompts and the like, and how its first part reads texts.
PARTS_FILE, MODEL_FILE, TEXT_FILE = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"

#: Former names of the last file, which sentence-transformers reads too.
FORMER_TEXT_FILES = tuple(
    f"sentence_{name}_config.json" for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)


def read_parts(model_name_or_path: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the parts of a model of sentence-transformers and the names of their classes; both are empty for others.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Example:
        >>> read_parts("minilm-l6")[1]
        ['Transformer', 'Pooling', 'Normalize']
    """
    parts = read_json(model_name_or_path, PARTS_FILE) or []
    return parts, [str(part["type"]).rpartition(".")[2] for part in parts]


def read_sentence_files(model_name_or_path: str) -> dict[str, Any]:
    """Return what a model of sentence-transformers stores about prompts, outputs and texts, by the name of the file.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Example:
        >>> read_sentence_files("minilm-l6")["sentence_bert_config.json"]["max_seq_length"]
        256
    """
    texts = (read_json(model_name_or_path, name) for name in (TEXT_FILE, *FORMER_TEXT_FILES))
    found = {
        MODEL_FILE: read_json(model_name_or_path, MODEL_FILE),
        TEXT_FILE: next((content for content in texts if content is not None), None),
    }
    return {name: content for name, content in found.items() if content is not None}


def read_cross_encoder(model_name_or_path: str) -> dict[str, Any]:
    """Return the files of a cross-encoder of sentence-transformers by their names; empty for other models.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Raises:
        MisconfigurationException: If the cross-encoder has parts besides the transformers model.
    """
    settings = read_json(model_name_or_path, MODEL_FILE) or {}
    if settings.get("model_type") != "CrossEncoder":
        return {}
    parts, kinds = read_parts(model_name_or_path)
    if kinds[1:]:
        raise MisconfigurationException(
            f"model_name_or_path={model_name_or_path!r} is a cross-encoder with the parts {', '.join(kinds)} in "
            f"{PARTS_FILE}. Supported is a Transformer alone. Use a LightningModule of your own with PGBCallback for "
            "others."
        )
    return {**({PARTS_FILE: parts} if parts else {}), **read_sentence_files(model_name_or_path)}


def read_json(model_name_or_path: str, name: str) -> Any:
    """Read a file of a model, or return ``None`` if there is no such file."""
    path = cached_file(resolve_model(model_name_or_path), name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(folder: Path, files: Mapping[str, Any]) -> None:
    """Write files to a folder, given their contents by their names."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
