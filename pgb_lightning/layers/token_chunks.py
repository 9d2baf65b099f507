"""Running a feed-forward sublayer on as many tokens at a time as the cache can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgb_lightning._compat import has_forward_hooks

#: What may lie between W1 and W2 at a time, in bytes. It stays in the cache then, and below the size from which on
#: memory is fetched from the system anew in every call.
CHUNK_BYTES = 6 * 2**20


class TokenChunks:
    """Calls a module's method on some tokens at a time.

    It takes the method's place on the module. The method must treat every token alike. The tokens stay together where
    gradients are recorded, hooks listen inside the module, a compiler looks on, or on another device than the CPU.

    Args:
        owner: The module.
        method: Name of the method.
        opening: Path of W1 in the module, whose outputs are the widest there are.
        chunk_bytes: Most bytes of W1's outputs at a time.
    """

    def __init__(self, owner: nn.Module, method: str, opening: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.owner = owner
        self.method = method
        self.opening = opening
        self.chunk_bytes = chunk_bytes

    def __call__(self, hidden: Tensor) -> Tensor:
        """Run the method on (..., d) hidden states."""
        method = getattr(type(self.owner), self.method)
        if self._must_stay_together(hidden):
            return method(self.owner, hidden)  # type: ignore[no-any-return]
        tokens = hidden.reshape(-1, hidden.shape[-1])
        # Whatever an exporter or quantizer has put in W1's place may not know its width.
        width = getattr(self.owner.get_submodule(self.opening), "out_features", 0)
        size = max(1, self.chunk_bytes // (width * hidden.element_size())) if width else len(tokens)
        if len(tokens) <= size or self._has_hooks():
            return method(self.owner, hidden)  # type: ignore[no-any-return]
        output = torch.empty_like(tokens)
        for given, place in zip(torch.split(tokens, size), torch.split(output, size), strict=True):
            place.copy_(method(self.owner, given))
        return output.view_as(hidden)

    def _must_stay_together(self, hidden: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or hidden.device.type != "cpu":
            return True
        return self.owner.training  # dropout would draw other numbers

    def _has_hooks(self) -> bool:
        return any(has_forward_hooks(module) for module in self.owner.modules())
