"""Modules inside wrappers, and modules that have several names."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

from torch import nn

from pgb_lightning._compat import CHECKPOINT_WRAPPED, has_hooks, share_hooks


def unwrap(module: nn.Module, parts: Collection[str]) -> tuple[str, nn.Module]:
    """Find the module inside wrappers, such as those of ``torch.compile`` and activation checkpointing.

    Args:
        module: The module, possibly wrapped.
        parts: Names of children by which the wrapped module is recognized.

    Returns:
        The path from ``module`` to the module inside, and that module; an empty path and ``module`` if there is none.

    Example:
        >>> layer = nn.ModuleDict({"ffn": nn.Linear(2, 2)})
        >>> unwrap(nn.ModuleDict({"inner": layer}), ["ffn"])[0]
        'inner'
    """
    for path, child in module.named_modules():
        if {*parts} <= {name for name, _ in child.named_children()}:
            return path, child
    return "", module


def join_path(*parts: str | None) -> str:
    """Join attribute paths, leaving out empty ones."""
    return ".".join(part for part in parts if part)


def state_dict_path(*parts: str) -> str:
    """Join attribute paths to a name in a state dict, from which activation checkpointing removes its wrapper's."""
    return ".".join(name for name in join_path(*parts).split(".") if name != CHECKPOINT_WRAPPED)


def names_of(module: nn.Module, root: nn.Module) -> list[str]:
    """Return all paths of a module inside another one."""
    return [path for path, child in root.named_modules(remove_duplicate=False) if child is module]


def replace_module(old: nn.Module, new: nn.Module, roots: Sequence[nn.Module]) -> None:
    """Replace a module under all of its names. From then on, hooks registered on it run on the new module.

    The new module gets the mode (training or eval) of the old one; its children keep theirs. Hooks of parameters
    (``Tensor.register_hook``) are lost, with a warning.

    Args:
        old: The module to replace.
        new: The module to put in its place.
        roots: The modules in which to replace it.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> net.alias = net[0]
        >>> replace_module(net[0], nn.Identity(), [net])
        >>> net
        Sequential(
          (0): Identity()
          (alias): Identity()
        )
    """
    if new is old:
        return
    share_hooks(old, new)
    new.training = old.training
    kept = set(new.parameters())
    if any(has_hooks(parameter) for parameter in old.parameters() if parameter not in kept):
        warnings.warn(
            "PGB: parameters with hooks of their own (Tensor.register_hook) are replaced, and the new ones have no "
            "hooks. Register hooks after the pruning, such as in on_train_start.",
            stacklevel=2,
        )
    for root in roots:
        for path in names_of(old, root):
            root.set_submodule(path, new)
