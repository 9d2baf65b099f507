"""Replacements for the core of a dropped sublayer, and for tables that only dropped sublayers read."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DroppedCore(nn.Module):
    """The core of a dropped sublayer, which returns its input or the sublayer's constant.

    Args:
        closing_path: Path of the closing linear layer inside the replaced module (DistilBERT); ``None`` if it lies
            outside (BERT).
        closing: That layer, now a :class:`~pgb_lightning.layers.linear.ConstantLinear`.
        returns_tuple: Whether the replaced module returned ``(output, attention weights)``.
        norm_path: Path of the LayerNorm inside the replaced module, if it adds the residual itself (ALBERT).
        norm: That LayerNorm.
    """

    def __init__(
        self,
        closing_path: str | None,
        closing: nn.Module | None,
        returns_tuple: bool,
        norm_path: str | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.closing_path = closing_path
        self.norm_path = norm_path
        self.returns_tuple = returns_tuple
        if closing_path is not None and closing is not None:
            self.add_module(closing_path, closing)
        if norm_path is not None and norm is not None:
            self.add_module(norm_path, norm)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, None]:
        """Return the input, or the output of the dropped sublayer or of its part inside the core."""
        output: Tensor = hidden_states
        if self.closing_path is not None:
            output = self.get_submodule(self.closing_path)(hidden_states)
        if self.norm_path is not None:
            output = self.get_submodule(self.norm_path)(hidden_states + output)
        return (output, None) if self.returns_tuple else output


class DroppedTable(nn.Module):
    """Replaces an embedding table that is no longer used: it returns empty vectors.

    ``DistributedDataParallel`` does not accept parameters without a gradient, as those of an unused table. State dicts
    of 0.1.0 have the table; it is ignored when they are loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_leave_out_table)  # type: ignore[no-untyped-call]

    def forward(self, indices: Tensor) -> Tensor:
        """Return a tensor of shape (..., 0) for indices of shape (...)."""
        return torch.zeros(*indices.shape, 0, device=indices.device)


def _leave_out_table(_: nn.Module, state_dict: dict[str, Tensor], prefix: str, *__: object) -> None:
    """Remove the entries of the table from a state dict (a ``load_state_dict`` pre-hook)."""
    state_dict.pop(f"{prefix}weight", None)
