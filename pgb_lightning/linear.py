"""The layers that stand where a pruned matrix stood."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """A linear layer whose weight is G dense blocks (Algorithm 3, PGB-LINEAR).

    Block g maps the inputs ``input_index[g]`` to the outputs ``output_index[g]``; all other weights are gone,
    on disk and in memory. What it computes equals ``x @ W + bias`` for the M x N matrix W that holds the
    blocks at those places and zeros elsewhere, so inputs and outputs keep their order (Section 3.3). Blocks
    need not cover every input or output: an output outside all blocks is its bias.

    Args:
        in_features: M, the number of inputs.
        out_features: N, the number of outputs.
        num_groups: G, the number of blocks.
        block_in: m, the inputs of a block; M / G if not given.
        block_out: n, the outputs of a block; N / G if not given.
        bias: Whether there is a bias of N entries.
        device: Where the parameters live.
        dtype: The parameters' type.

    Shape:
        ``weight`` (G, m, n), ``input_index`` (G, m), ``output_index`` (G, n), ``bias`` (N);
        input (..., M), output (..., N).

    Raises:
        ValueError: The blocks do not fit the matrix.

    Example:
        >>> GroupedLinear(768, 3072, num_groups=4).weight.shape
        torch.Size([4, 192, 768])
    """

    #: Layout of the state dict; torch keeps it there as metadata.
    _version = 1

    input_index: Tensor
    output_index: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_groups: int,
        block_in: int | None = None,
        block_out: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_groups < 1:
            raise ValueError(f"num_groups={num_groups} is out of range: it must be at least 1.")
        block_in = in_features // num_groups if block_in is None else block_in
        block_out = out_features // num_groups if block_out is None else block_out
        if not 1 <= block_in * num_groups <= in_features or not 1 <= block_out * num_groups <= out_features:
            raise ValueError(
                f"num_groups={num_groups} blocks of {block_in} x {block_out} do not fit a matrix of "
                f"{in_features} x {out_features}."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(num_groups, block_in, block_out, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        # Four bytes an index: with eight, the indices of a block of 128 x 128 would weigh 3 % of it.
        self.register_buffer("input_index", _spread(num_groups, block_in, device))
        self.register_buffer("output_index", _spread(num_groups, block_out, device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as ``nn.Linear`` does, from the inputs that each output really has."""
        bound = 1 / math.sqrt(self.block_in)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def num_groups(self) -> int:
        """G, the number of blocks."""
        return self.weight.shape[0]

    @property
    def block_in(self) -> int:
        """m, the inputs of a block."""
        return self.weight.shape[1]

    @property
    def block_out(self) -> int:
        """n, the outputs of a block."""
        return self.weight.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks: gather the inputs, multiply group by group, put the outputs in their places.

        Args:
            x: Input of shape (..., M).

        Returns:
            Output of shape (..., N).
        """
        groups, block_in, _ = self.weight.shape
        gathered = x.reshape(-1, self.in_features).index_select(1, self.input_index.flatten())
        blocks = gathered.view(-1, groups, block_in).transpose(0, 1)
        outputs = self.output_index.flatten().long()
        if self.bias is None:
            grouped = torch.bmm(blocks, self.weight)
            base = grouped.new_zeros(self.out_features)
        else:
            grouped = torch.baddbmm(self.bias[outputs].view(groups, 1, -1), blocks, self.weight)
            base = self.bias.to(grouped.dtype)  # under autocast the product is of a lower precision
        concatenated = grouped.transpose(0, 1).reshape(-1, outputs.numel())
        placed = base.expand(concatenated.shape[0], -1).index_copy(1, outputs, concatenated)
        return placed.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """Return Ŵ*, the re-permuted matrix with zeros, as an ``nn.Linear`` weight of shape (N, M)."""
        dense = self.weight.new_zeros(self.out_features, self.in_features)
        dense[self.output_index.long().unsqueeze(1), self.input_index.long().unsqueeze(2)] = self.weight
        return dense

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, groups={self.num_groups}, "
            f"block={self.block_in}x{self.block_out}, bias={self.bias is not None}"
        )


class ConstantLinear(nn.Module):
    """A linear layer whose whole matrix is pruned: its output is its bias, whatever comes in.

    Args:
        in_features: M, the number of inputs.
        out_features: N, the number of outputs.
        device: Where the bias lives.
        dtype: The bias's type.

    Shape:
        Input (..., M), output (..., N).

    Example:
        >>> ConstantLinear(8, 4)(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the bias for every position of ``x``."""
        # Ask autocast what a linear layer would return, so that neighbours see one type.
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.bias.dtype
        # The views made from an expanded tensor would alias one memory; in-place users must not meet that.
        return self.bias.to(dtype).expand(*x.shape[:-1], -1).contiguous()

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


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


def _spread(groups: int, size: int, device: torch.device | str | None) -> Tensor:
    """Number the inputs or outputs of each block in order, as a start."""
    return torch.arange(groups * size, device=device, dtype=torch.int32).view(groups, size)
