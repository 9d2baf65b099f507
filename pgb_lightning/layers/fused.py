"""A fused linear layer, for matrices that read the same input, with pruned parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FusedLinear(nn.Module):
    """A fused linear layer some of whose parts are pruned or removed. It joins the outputs of its parts.

    It replaces a layer such as ModernBERT's ``Wqkv``. As long as all parts are dense, they remain one linear layer.

    Args:
        parts: The layer of each part, by matrix kind, in the order of their outputs and of equal width.
        block: Consecutive outputs of a part if the parts are interleaved, such as the features of a head in DeBERTa;
            ``None`` if the outputs of a part are consecutive.

    Shape:
        Input (..., M), output (..., N) where N is the sum of the parts' outputs.

    Example:
        >>> fused = FusedLinear({"Q": nn.Linear(2, 4), "K": nn.Linear(2, 4)})
        >>> fused(torch.zeros(3, 2)).shape, fused.out_features
        (torch.Size([3, 8]), 8)
    """

    def __init__(self, parts: Mapping[str, nn.Module], block: int | None = None) -> None:
        super().__init__()
        self.block = block
        for kind, part in parts.items():
            self.add_module(kind, part)

    @property
    def in_features(self) -> int:
        """M."""
        return int(next(self.children()).in_features)  # type: ignore[arg-type]

    @property
    def out_features(self) -> int:
        """N."""
        return sum(map(int, (part.out_features for part in self.children())))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all parts, (..., N), for an input (..., M)."""
        outputs = [part(x) for part in self.children()]
        if self.block is None:
            return torch.cat(outputs, dim=-1)
        blocks = [output.unflatten(-1, (-1, self.block)) for output in outputs]
        return torch.stack(blocks, dim=-2).flatten(-3)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
