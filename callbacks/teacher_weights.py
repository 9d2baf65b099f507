"""Select the weights of a transformers model from the state dict of a module, in which it may have several names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pgb_lightning.encoders.wrappers import join_path


def select_weights(state: Mapping[str, Any], root: nn.Module, model: nn.Module, dense: nn.Module) -> dict[str, Any]:
    """Return the entries of a module's state dict that belong to a model inside it, under the model's own names.

    An entry is found under any name that its module has in ``root``: under aliases, and with or without the attributes
    of wrappers, which have a leading underscore.

    Args:
        state: The state dict of a module like ``root``.
        root: The module.
        model: A model inside it.
        dense: A model of the same class whose state dict is to be filled.

    Returns:
        The entries that were found, and those of the model that ``dense`` does not have.
    """
    saved = {plain_name(key): value for key, value in state.items()}
    outside: dict[int, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        outside.setdefault(id(module), []).append(plain_name(name))
    inside = {plain_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    found: dict[str, Any] = {}
    known: set[str] = set()
    for key in dense.state_dict():
        plain = owner = plain_name(key)
        while owner not in inside:  # The model may be pruned, and lack the module of this entry.
            owner = owner.rpartition(".")[0]
        names = [join_path(name, plain[len(owner) :].removeprefix(".")) for name in outside[id(inside[owner])]]
        known.update(names)
        if present := [name for name in names if name in saved]:
            found[key] = saved[present[0]]
    for prefix in (join_path(name, "x")[:-1] for name in outside[id(model)]):
        extra = [key for key in saved if key.startswith(prefix) and key not in known]
        found |= {key.removeprefix(prefix): saved[key] for key in extra}
    return found


def plain_name(name: str) -> str:
    """Return a name without the attributes of wrappers, such as ``_orig_mod``."""
    return ".".join(part for part in name.split(".") if not part.startswith("_"))
