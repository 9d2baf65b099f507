"""Run a module in eval mode temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch a module to eval mode, and restore the mode of every submodule on exit.

    Modes are restored by submodule name, so submodules may be replaced inside the context. A submodule with a new name
    gets the mode that ``module`` had.

    Args:
        module: The module.

    Example:
        >>> net = nn.Sequential(nn.Dropout())
        >>> with eval_mode(net):
        ...     net[0].training
        False
        >>> net[0].training
        True
    """
    modes = {name: child.training for name, child in module.named_modules()}
    module.eval()
    try:
        yield
    finally:
        for name, child in module.named_modules():
            child.training = modes.get(name, modes[""])
