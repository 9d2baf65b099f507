"""Run a module in eval mode, or code without ``torch.compile`` or autocast, temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch
from torch import nn

_lock = Lock()
_uncompiled = ExitStack()
_num_uncompiled = 0


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


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Keep the precision of operations on a device, also where the caller has enabled autocast.

    Args:
        device: The device.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.device("cpu")):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield


@contextmanager
def uncached_autocast() -> Iterator[None]:
    """Let autocast convert weights anew in each operation, since it does not notice that they change.

    Conversions from before are forgotten, and those inside the context are not kept.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run everything that ``torch.compile`` has compiled without its compiled code.

    Compiled code ignores hooks that are registered later, or would be compiled again. torch has one such setting for
    all threads; it is restored when the last thread leaves the context.

    Example:
        >>> with uncompiled():
        ...     torch.compile(nn.ReLU())(torch.ones(1))
        tensor([1.])
    """
    global _num_uncompiled
    with _lock:
        if not _num_uncompiled:
            _uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
        _num_uncompiled += 1
    try:
        yield
    finally:
        with _lock:
            _num_uncompiled -= 1
            if not _num_uncompiled:
                _uncompiled.close()
