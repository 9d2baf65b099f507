"""Save the state of a tensor, and restore it in the same tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def save_tensor(tensor: Tensor) -> Callable[[], None]:
    """Save a tensor's content, storage, shape and ``requires_grad``, and which tensor is its ``grad``.

    The content is copied to the CPU, so that calibration needs no more memory on the device.
    """
    if is_lazy(tensor):  # no content yet
        return lambda: None if is_lazy(tensor) else setattr(tensor, "data", torch.empty(0).to(tensor))
    is_leaf, requires_grad = tensor.is_leaf, tensor.requires_grad
    gradient = tensor.grad if is_leaf else None
    with _writable(tensor):
        alias, placement = tensor.data, _placement(tensor)
        content = None if tensor.is_meta else _distinct(tensor.detach()).to("cpu", copy=True)

    def restore() -> None:
        with _writable(tensor):
            if placement is None:  # a sparse or other special layout
                tensor.data = content.to(tensor.device)  # type: ignore[union-attr]
            else:
                if _placement(tensor) != placement:
                    if alias.untyped_storage().nbytes() < placement[1]:
                        alias.untyped_storage().resize_(placement[1])
                    tensor.data = alias
                # Not .data: the version counter must notice a change, as caches rely on it.
                target = _distinct(tensor.detach())
                if content is not None and not _equal(target, content):
                    target.copy_(content)
            if is_leaf and tensor.grad_fn is not None:  # changed in place by a tensor that requires grad
                tensor.detach_()
        if is_leaf and tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        if is_leaf and tensor.grad is not gradient:
            tensor.grad = gradient

    return restore


@contextmanager
def _writable(tensor: Tensor) -> Iterator[None]:
    """Allow in-place operations, also on leaves and on tensors created in inference mode."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        yield


def _placement(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return where a tensor's content is in memory, or ``None`` if it is not a plain strided tensor."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    storage = tensor.untyped_storage()
    where = None if tensor.is_meta else storage.data_ptr()
    return where, storage.nbytes(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _distinct(tensor: Tensor) -> Tensor:
    """Return a view of a tensor in which no element appears twice because of ``expand``."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            tensor = tensor.narrow(dim, 0, 1) if stride == 0 and size > 1 else tensor
    return tensor


def _equal(tensor: Tensor, content: Tensor) -> bool:
    with suppress(RuntimeError, NotImplementedError):  # not implemented for all types
        return torch.equal(tensor, content.to(tensor.device))
    return False
