"""Load modules in a runtime to measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pgb_lightning.config import LatencyRuntime
from pgb_lightning.runtimes.onnx_modules import load_onnx_modules

Run: TypeAlias = Callable[[], Tensor]

#: Number of modules that are exported together, since a call of the exporter has a fixed cost of several seconds.
CHUNK = 16


def load_modules(modules: Iterable[nn.Module], hidden: Tensor, runtime: LatencyRuntime) -> Iterator[Run]:
    """Load modules in a runtime, with PyTorch's number of threads.

    Args:
        modules: Modules from a tensor to a tensor, in eval mode. They are taken from the iterable as needed.
        hidden: The input of all of them.
        runtime: The runtime.

    Yields:
        For each module a function that runs it on the input.

    Example:
        >>> [run] = load_modules([nn.ReLU()], torch.tensor([-1.0, 2.0]), "torch")
        >>> run()
        tensor([0., 2.])
    """
    if runtime == "torch":
        for module in modules:
            yield partial(module, hidden)
        return
    left = iter(modules)
    while chunk := list(islice(left, CHUNK)):
        yield from load_onnx_modules(chunk, hidden)


def runtime_version(runtime: LatencyRuntime) -> str:
    """Return the version of a runtime, on which latency depends."""
    return str(torch.__version__) if runtime == "torch" else version(runtime)
