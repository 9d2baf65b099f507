"""Run a feed-forward sublayer in chunks of tokens that fit into the CPU's cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgb_lightning._compat import has_forward_hooks, is_transformed

#: Maximum number of bytes between W1 and W2 in a chunk. They stay in the cache, and below the size from which the
#: allocator requests new memory from the system in every call.
CHUNK_BYTES = 6 * 2**20


class TokenChunks:
    """Calls a module's method on chunks of tokens.

    It replaces the method on the module instance. The method must process every token independently. The tokens are not
    split if gradients are recorded, in training mode (dropout would draw other numbers), if hooks are registered inside
    the module, under a compiler or a transform of ``torch.func``, or on devices other than the CPU.

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
        is_recorded = torch.compiler.is_compiling() or torch.is_grad_enabled() or is_transformed()
        if is_recorded or hidden.device.type != "cpu":
            return True
        return self.owner.training

    def _has_hooks(self) -> bool:
        return any(has_forward_hooks(module) for module in self.owner.modules())
