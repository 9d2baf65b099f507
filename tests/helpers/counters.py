"""Counters of work that decides the speed on a GPU, for tests that do not measure time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

#: Operations whose result the host reads, or whose result has a size that depends on values.
READS = (
    aten._local_scalar_dense,  # item(), bool(), float() and int() of a tensor
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten._unique2,
)
#: Methods that copy to the host, of which the dispatcher sees nothing on a CPU.
COPIES = (Tensor.cpu, Tensor.numpy, Tensor.tolist)
#: Operations that select by a mask, whose size depends on values.
SELECTIONS = (aten.index, aten.index_put, aten.index_put_)
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.addmm_, aten.baddbmm, aten.baddbmm_)


class _Operations(TorchDispatchMode):
    """Calls a function for every operation, with its tensors."""

    def __init__(self, see: Callable[[Any, list[Tensor]], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self.see(func.overloadpacket, given)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Counts calls of :data:`COPIES`."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in COPIES:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def synchronizations() -> Iterator[Counter[str]]:
    """Count by name the operations for which the host would wait for a GPU."""
    found: Counter[str] = Counter()

    def see(operation: Any, tensors: list[Tensor]) -> None:
        by_mask = operation in SELECTIONS and any(each.dtype == torch.bool for each in tensors[1:])
        if by_mask or operation in READS:
            found[str(operation)] += 1

    with _Operations(see), _Methods(found):
        yield found


@contextmanager
def double_products() -> Iterator[Counter[str]]:
    """Count by name the matrix products in double precision, which most GPUs compute at a small part of their speed."""
    found: Counter[str] = Counter()

    def see(operation: Any, tensors: list[Tensor]) -> None:
        if operation in PRODUCTS and any(each.dtype == torch.float64 for each in tensors):
            found[str(operation)] += 1

    with _Operations(see):
        yield found
