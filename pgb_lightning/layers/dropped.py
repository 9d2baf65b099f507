"""What replaces the core of a dropped sublayer."""

from __future__ import annotations

from torch import Tensor, nn


class DroppedCore(nn.Module):
    """The core of a dropped sublayer: returns its input, so that the sublayer is LayerNorm(x + bias').

    Args:
        closing_path: Path of the closing linear layer inside the replaced module (DistilBERT); ``None`` if it lies
            outside (BERT).
        closing: That layer, now a :class:`~pgb_lightning.layers.linear.ConstantLinear`.
        returns_tuple: Whether the replaced module returned ``(output, attention weights)``.
    """

    def __init__(self, closing_path: str | None, closing: nn.Module | None, returns_tuple: bool) -> None:
        super().__init__()
        self.closing_path = closing_path
        self.returns_tuple = returns_tuple
        if closing_path is not None and closing is not None:
            self.add_module(closing_path, closing)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, None]:
        """Return the input, or the constant that is the sublayer's output."""
        output: Tensor = hidden_states
        if self.closing_path is not None:
            output = self.get_submodule(self.closing_path)(hidden_states)
        return (output, None) if self.returns_tuple else output
