"""Read the entries of a dense model's card that also hold for its pruned models."""

from __future__ import annotations

from typing import Any

from transformers.utils.hub import cached_file

from pgb_lightning.export.card_facts import hub_name
from pgb_lightning.packaged import resolve_model

#: Entries of a model card that a pruned model shares with the dense model.
INHERITED = ("language", "license", "license_name", "license_link")


def read_inherited(model_name_or_path: str) -> dict[str, Any]:
    """Return the entries of a dense model's card that also hold for its pruned models: language and license.

    For a model that is not on the Hub, its own ``base_model`` is included.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Returns:
        Entries of the card; empty if there is no card, or it cannot be read.
    """
    from huggingface_hub import ModelCard

    try:
        path = cached_file(resolve_model(model_name_or_path), "README.md", _raise_exceptions_for_missing_entries=False)
        data = {} if path is None else ModelCard.load(path).data.to_dict()
    except Exception:  # cards are written by hand and may be malformed
        return {}
    names = INHERITED if hub_name(model_name_or_path) else (*INHERITED, "base_model")
    return {name: data[name] for name in names if name in data}
