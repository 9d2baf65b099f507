"""Dropout on a CPU with a quarter of the random numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgb_lightning.layers.grouped_product import is_traced

#: Number of values of the 16-bit integers that determine which entries are kept.
VALUES = 2**16


class Dropout16(nn.Dropout):
    """Dropout that uses 16 random bits for each entry, where torch draws 64.

    torch's random number generator for the CPU is serial, so drawing the numbers for dropout takes as long in a pruned
    model as in the dense one. Here, each number is used for four entries. The probability equals that of ``nn.Dropout``
    to within 1/131,072, and kept entries are scaled by the inverse of their exact probability, so the expected output
    is the input. With the same seed, the dropped entries differ from those of ``nn.Dropout``.

    It has no state of its own. On other devices, under compilers, exporters and transforms of ``torch.func``, and in
    evaluation, it behaves as ``nn.Dropout``.

    Example:
        >>> Dropout16(0.5)(torch.ones(1000)).unique().tolist()
        [0.0, 2.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with entries set to zero at random and the others scaled."""
        dropped = round(self.p * VALUES)
        is_plain = self.training and not self.inplace and input.device.type == "cpu" and not is_traced()
        if not is_plain or not 0 < dropped < VALUES:
            return super().forward(input)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64, device=input.device)
        words.random_(-(2**63), None)
        kept = words.view(torch.int16)[: input.numel()].view(input.shape) >= dropped - VALUES // 2
        return input * kept.to(input.dtype).mul_(VALUES / (VALUES - dropped))


def use_fast_dropout(model: nn.Module) -> list[nn.Dropout]:
    """Make the dropout layers of a model draw fewer random numbers.

    Args:
        model: The model. Its layers stay the same objects, with their hooks. Subclasses of ``nn.Dropout`` are not
            changed, nor is the dropout of attention weights, which torch computes inside its attention.

    Returns:
        The layers that changed, for :func:`use_default_dropout`.
    """
    found = [module for module in model.modules() if type(module) is nn.Dropout]
    for module in found:
        module.__class__ = Dropout16
    return found


def use_default_dropout(layers: list[nn.Dropout]) -> None:
    """Undo :func:`use_fast_dropout`.

    Args:
        layers: The layers that it returned.
    """
    for module in layers:
        module.__class__ = nn.Dropout
