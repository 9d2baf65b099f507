"""Run a feed-forward sublayer in chunks of tokens that fit into the CPU's cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgb_lightning._compat import REPLICATE, has_forward_hooks
from pgb_lightning.layers.grouped_product import is_traced

#: Maximum number of bytes between W1 and W2 in a chunk. They stay in the cache, and below the size from which the
#: allocator requests new memory from the system in every call.
CHUNK_BYTES = 6 * 2**20


class TokenChunks:
    """Calls a module's method on chunks of tokens.

    It replaces the method on the module instance. The method must process every token independently. The tokens are not
    split if gradients are recorded, in training mode (dropout would draw other numbers), if hooks are registered inside
    the module, under a compiler, a tracer or a transform of ``torch.func``, or on devices other than the CPU.

    Args:
        owner: The module.
        method: Name of the method.
        opening: Path of W1 in the module, whose outputs are the widest.
        chunk_bytes: Maximum number of bytes of W1's outputs in a chunk.
    """

    def __init__(self, owner: nn.Module, method: str, opening: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.owner = owner
        self.method = method
        self.opening = opening
        self.chunk_bytes = chunk_bytes

    def install(self) -> None:
        """Replace the method on the module."""
        vars(self.owner).update({self.method: self, REPLICATE: self.replicate})

    def remove(self) -> None:
        """Undo :meth:`install`."""
        self._remove_from(self.owner)

    def replicate(self) -> nn.Module:
        """Return a copy of the module for ``nn.DataParallel``, which would otherwise run this module's weights."""
        replica: nn.Module = getattr(type(self.owner), REPLICATE)(self.owner)
        self._remove_from(replica)
        return replica

    def _remove_from(self, module: nn.Module) -> None:
        for name in (self.method, REPLICATE):
            vars(module).pop(name, None)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Run the method on (..., d) hidden states."""
        method = getattr(type(self.owner), self.method)
        if self._needs_all_tokens(hidden):
            return method(self.owner, hidden)  # type: ignore[no-any-return]
        tokens = hidden.reshape(-1, hidden.shape[-1])
        # An exporter or quantizer may have replaced W1 by a module without this attribute.
        width = getattr(self.owner.get_submodule(self.opening), "out_features", 0)
        size = max(1, self.chunk_bytes // (width * hidden.element_size())) if width else len(tokens)
        if len(tokens) <= size or self._has_hooks():
            return method(self.owner, hidden)  # type: ignore[no-any-return]
        output = torch.empty_like(tokens)
        for chunk, place in zip(torch.split(tokens, size), torch.split(output, size), strict=True):
            place.copy_(method(self.owner, chunk))
        return output.view_as(hidden)

    def _needs_all_tokens(self, hidden: Tensor) -> bool:
        return is_traced() or torch.is_grad_enabled() or hidden.device.type != "cpu" or self.owner.training

    def _has_hooks(self) -> bool:
        return any(has_forward_hooks(module) for module in self.owner.modules())
