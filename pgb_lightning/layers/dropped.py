"""What stands in place of a dropped sublayer."""

from __future__ import annotations

from torch import Tensor, nn


class DroppedCore(nn.Module):
    """The inside of a dropped sublayer: hands its input on, so that the sublayer is LayerNorm(x + bias').

    Args:
        closing_path: Name of the closing linear where it lies inside the replaced module (DistilBERT);
            ``None`` where it stands beside it (BERT).
        closing: That linear, now a :class:`ConstantLinear`.
        returns_tuple: Whether the replaced module returned ``(output, attention weights)``.
    """

    def __init__(self, closing_path: str | None, closing: nn.Module | None, returns_tuple: bool) -> None:
        super().__init__()
        self.closing_path = closing_path
        self.returns_tuple = returns_tuple
        if closing_path is not None and closing is not None:
            self.add_module(closing_path, closing)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, None]:
        """Return the input, or the constant that stands for the sublayer's output."""
        output: Tensor = hidden_states
        if self.closing_path is not None:
            output = self.get_submodule(self.closing_path)(hidden_states)
        return (output, None) if self.returns_tuple else output
