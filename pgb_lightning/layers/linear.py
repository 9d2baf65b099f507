"""The layers that stand where a pruned matrix stood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgb_lightning.layers.grouped_product import grouped_product, inverse_order, put_columns, take_columns


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
        self._known: _Places | None = None
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
        """Apply the blocks: take the inputs, multiply group by group, put the outputs in their places.

        Inputs and outputs that lie block by block already are neither taken nor put.

        Args:
            x: Input of shape (..., M).

        Returns:
            Output of shape (..., N).
        """
        places = self._places()
        tokens = x.reshape(-1, self.in_features)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(x.device.type):  # which knows nothing of operations that write to a given place
            dtype = torch.get_autocast_dtype(x.device.type)
            tokens, weight, bias = tokens.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if places.rows is not None:
            tokens = take_columns(tokens, places.rows)
        if bias is None or places.columns is None:
            output = grouped_product(tokens, weight, bias)
        else:
            output = grouped_product(tokens, weight, bias[places.columns])
        if places.inverse is not None:
            output = take_columns(output, places.inverse)
        elif places.columns is not None:
            base = output.new_zeros(self.out_features) if bias is None else bias
            output = put_columns(output, places.columns, base)
        return output.view(*x.shape[:-1], self.out_features)

    def _places(self) -> _Places:
        """Say what must be moved; worked out once for the indices that the layer has."""
        if torch.compiler.is_compiling():
            return self._known or _Places.plain(self.input_index, self.output_index)
        if self._known is None or not self._known.hold_for(self.input_index, self.output_index):
            with torch.inference_mode(False):  # training may follow upon an evaluation
                self._known = _Places.of(self)
        return self._known

    def settle(self) -> None:
        """Work out now what a forward pass has to move.

        The small tensors that this makes, if made between the large ones of a first pass, would keep the heap from
        shrinking behind them: several times the activations, over a whole encoder.
        """
        self._places()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what was worked out for these very tensors."""
        return {**self.__dict__, "_known": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Settle a copy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.settle()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Settle after new indices came in."""
        super()._load_from_state_dict(*args, **kwargs)
        self.settle()

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


@dataclass(frozen=True)
class _Places:
    """What a grouped layer moves, worked out from its indices.

    Args:
        rows: The inputs of all blocks, (G·m), int64; ``None`` if they are all inputs, in order.
        columns: The outputs of all blocks, (G·n), int64; ``None`` if they are all outputs, in order.
        inverse: For every output its place among the blocks', (N), int64; ``None`` if no output need move, or some
            are in no block.
        source: The indices, and how often each was written to, when this was worked out.
    """

    rows: Tensor | None
    columns: Tensor | None
    inverse: Tensor | None
    source: tuple[Tensor, int, Tensor, int] | None = None

    @classmethod
    def of(cls, layer: GroupedLinear) -> _Places:
        plain = cls.plain(layer.input_index, layer.output_index)
        assert plain.rows is not None
        assert plain.columns is not None
        if plain.rows.is_meta:
            return plain
        rows = None if _is_in_order(plain.rows, layer.in_features) else plain.rows
        source = (
            *(layer.input_index, _edition(layer.input_index)),
            *(layer.output_index, _edition(layer.output_index)),
        )
        if _is_in_order(plain.columns, layer.out_features):
            return cls(rows, None, None, source)
        covers_all = len(plain.columns) == layer.out_features
        return cls(rows, plain.columns, inverse_order(plain.columns) if covers_all else None, source)

    @classmethod
    def plain(cls, rows: Tensor, columns: Tensor) -> _Places:
        """Move everything, without looking at where it goes."""
        return cls(rows.flatten().long(), columns.flatten().long(), None)

    def hold_for(self, rows: Tensor, columns: Tensor) -> bool:
        """Tell whether the indices are still those that this was worked out from."""
        if self.source is None:
            return False
        old_rows, rows_edition, old_columns, columns_edition = self.source
        same = old_rows is rows and old_columns is columns
        return same and rows_edition == _edition(rows) and columns_edition == _edition(columns)


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


def _spread(groups: int, size: int, device: torch.device | str | None) -> Tensor:
    """Number the inputs or outputs of each block in order, as a start."""
    return torch.arange(groups * size, device=device, dtype=torch.int32).view(groups, size)


def _is_in_order(index: Tensor, size: int) -> bool:
    return len(index) == size and torch.equal(index, torch.arange(size, device=index.device))


def _edition(index: Tensor) -> int:
    """Count how often a tensor was written to; those made in inference mode are not counted."""
    return 0 if index.is_inference() else index._version
