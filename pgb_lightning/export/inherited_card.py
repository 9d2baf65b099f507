"""What the card of a dense model says about its pruned models too."""

from __future__ import annotations

from typing import Any

from transformers.utils.hub import cached_file

from pgb_lightning.export.card_facts import hub_name
from pgb_lightning.packaged import resolve_model

#: What a pruned model has in common with the dense one.
INHERITED = ("language", "license", "license_name", "license_link")


def read_inherited(model_name_or_path: str) -> dict[str, Any]:
    """Return what the card of a dense model says about its pruned models too: its language and its license.

    A model that is not on the Hub passes on its own ``base_model``.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Returns:
        Entries of the card; empty if there is no card, or it cannot be read.
    """
    from huggingface_hub import ModelCard

    try:
        path = cached_file(resolve_model(model_name_or_path), "README.md", _raise_exceptions_for_missing_entries=False)
        data = {} if path is None else ModelCard.load(path).data.to_dict()
    except Exception:  # a card is written by hand and may be anything
        return {}
    names = INHERITED if hub_name(model_name_or_path) else (*INHERITED, "base_model")
    return {name: data[name] for name in names if name in data}
