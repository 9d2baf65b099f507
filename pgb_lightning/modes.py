"""Run a module in eval mode and put its modes back, even where its children were exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch a module to eval mode; afterwards each child has the mode that stood at its name before.

    Args:
        module: The module. Its children may be replaced meanwhile.

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
