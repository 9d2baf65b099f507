"""The layers that replace a pruned matrix: dense blocks (Algorithm 3), or only a bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pgb_lightning.layers.grouped_product import gather_columns, grouped_product, is_in_order, scatter_columns
from pgb_lightning.layers.matrix import REMOVED, BlockIndex, BlockShape

#: Buffer with M and N in a grouped layer without a bias, since they do not follow from its other tensors.
SIZE = "size"


class GroupedLinear(nn.Module):
    """A linear layer whose weight is G dense blocks (Algorithm 3, PGB-LINEAR).

    Block g maps the inputs ``input_index[g]`` to the outputs ``output_index[g]``. All other weights are removed, on
    disk and in memory. The layer computes ``x @ W + bias`` for the M x N matrix W with the blocks at these positions
    and zeros elsewhere, so inputs and outputs keep their order (Section 3.3). The blocks need not cover every input or
    output: an output outside all blocks equals its bias.

    The two index buffers are the only state besides the parameters. Everything else is derived from them in each
    forward pass, so the layer is correct no matter how the buffers are changed: by loading in any grad mode, moving,
    copying, ``functional_call`` or in-place edits. On a CPU, each forward pass checks whether the inputs or outputs are
    in block order, and then skips the gather or scatter. Compared with caching the result, this costs about 25 µs a
    call on one core: 17 to 35 % of a layer's time for a single token, at most 13 % for 16 tokens and 5 % from 128
    tokens on (384 x 1536 to 3072 x 768, G = 2). On other devices the check would wait for the device, so inputs and
    outputs are always gathered and scattered; the cost of that has not been measured.

    Args:
        in_features: M, the number of inputs.
        out_features: N, the number of outputs.
        num_groups: G, the number of blocks.
        block_in: m, the inputs of a block; M / G by default.
        block_out: n, the outputs of a block; N / G by default.
        bias: Whether the layer has a bias of N entries.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        ``weight`` (G, m, n), ``input_index`` (G, m), ``output_index`` (G, n), ``bias`` (N) or, without a bias, ``size``
        (2): M and N; input (..., M), output (..., N).

    Raises:
        ValueError: If the blocks do not fit the matrix.

    Example:
        >>> GroupedLinear(768, 3072, num_groups=4).weight.shape
        torch.Size([4, 192, 768])
    """

    #: Layout of the state dict; torch stores it as metadata.
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
        # int32: with int64, the indices of a 128 x 128 block would take 3 % of its size on disk.
        self.register_buffer("input_index", _consecutive(num_groups, block_in, device))
        self.register_buffer("output_index", _consecutive(num_groups, block_out, device))
        if not bias:  # with a bias, its length is N
            self.register_buffer(SIZE, torch.tensor([in_features, out_features], device=device, dtype=torch.int32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights and bias as ``nn.Linear`` does, with a block's inputs as the fan-in."""
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

    @property
    def block_shape(self) -> BlockShape:
        """G, m and n."""
        return BlockShape(self.num_groups, self.block_in, self.block_out)

    def forward(self, x: Tensor) -> Tensor:
        """Gather the inputs of each block, multiply block by block, and scatter the outputs.

        Args:
            x: Input of shape (..., M).

        Returns:
            Output of shape (..., N).
        """
        tokens = x.reshape(-1, self.in_features)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(x.device.type):  # autocast does not cover operations with an ``out`` argument
            dtype = torch.get_autocast_dtype(x.device.type)
            tokens, weight, bias = tokens.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        rows, columns = self.input_index.flatten().long(), self.output_index.flatten().long()
        if not is_in_order(rows, self.in_features):
            tokens = gather_columns(tokens, rows)
        if is_in_order(columns, self.out_features):
            output = grouped_product(tokens, weight, bias)
        else:
            output = grouped_product(tokens, weight, None if bias is None else bias[columns])
            output = scatter_columns(output, columns, self.out_features, bias)
        return output.view(*x.shape[:-1], self.out_features)

    def index(self) -> BlockIndex:
        """Return the inputs (G, m) and outputs (G, n) of the blocks, int64."""
        return BlockIndex(self.input_index.long(), self.output_index.long())

    def kept_weights(self) -> Tensor:
        """Return the weights of the blocks, (G, m, n)."""
        return self.weight

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """Return Ŵ*, the re-permuted matrix with zeros, as an ``nn.Linear`` weight of shape (N, M)."""
        dense = self.weight.new_zeros(self.out_features, self.in_features)
        rows, columns = self.index()
        dense[columns.unsqueeze(1), rows.unsqueeze(2)] = self.weight
        return dense

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, groups={self.num_groups}, "
            f"block={self.block_in}x{self.block_out}, bias={self.bias is not None}"
        )


class ConstantLinear(nn.Module):
    """A linear layer whose matrix is removed: its output is its bias, for any input.

    Its weight is stored as an empty tensor. A dense layer does not accept this shape, so the state dict of a pruned
    model cannot be loaded into a dense model without an error, which would otherwise keep its own weights there. State
    dicts of 0.1.0 do not have this entry.

    Args:
        in_features: M, the number of inputs.
        out_features: N, the number of outputs.
        bias: Whether the layer has a bias of N entries; without one, its output is zero.
        device: Device of the bias.
        dtype: Data type of the bias.

    Shape:
        ``weight`` (0, 0, 0), ``bias`` (N); input (..., M), output (..., N).

    Example:
        >>> ConstantLinear(8, 4)(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    #: Layout of the state dict; torch stores it as metadata. The first one has no weight.
    _version = 2

    #: There are no blocks.
    block_shape = REMOVED

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        # A buffer, because optimizers and DistributedDataParallel expect gradients of parameters.
        self.register_buffer("weight", torch.zeros(REMOVED, device=device, dtype=dtype))
        self.register_load_state_dict_pre_hook(_add_empty_weight)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Return the bias for every position of ``x``."""
        # Under autocast, return the data type that a linear layer would.
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        if self.bias is None:
            return torch.zeros(*x.shape[:-1], self.out_features, device=x.device, dtype=dtype)
        # Positions of an expanded tensor share memory, which breaks in-place operations of the caller.
        return self.bias.to(dtype).expand(*x.shape[:-1], -1).contiguous()

    def index(self) -> BlockIndex:
        """Return empty indices."""
        nothing = torch.zeros(0, 0, dtype=torch.long, device=self.weight.device)
        return BlockIndex(nothing, nothing)

    def kept_weights(self) -> Tensor:
        """Return an empty tensor, (0, 0, 0)."""
        return self.weight

    def dense_weight(self) -> Tensor:
        """Return a zero matrix, (N, M)."""
        return self.weight.new_zeros(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _add_empty_weight(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Add the empty weight to a state dict without it (a ``load_state_dict`` pre-hook)."""
    assert isinstance(module, ConstantLinear)
    if f"{prefix}bias" in state_dict:
        state_dict.setdefault(f"{prefix}weight", module.weight)


def _consecutive(groups: int, size: int, device: torch.device | str | None) -> Tensor:
    """Return the initial indices: the inputs or outputs of each block in order, (G, size), int32."""
    return torch.arange(groups * size, device=device, dtype=torch.int32).view(groups, size)
