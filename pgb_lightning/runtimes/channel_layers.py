"""Grouped layers in the layout that onnxruntime runs fastest.

:class:`~pgb_lightning.layers.linear.GroupedLinear` gathers columns of a (tokens, features) tensor. onnxruntime copies
columns element by element, but rows as contiguous memory. With features first, the gather is almost free, and a
feed-forward sublayer needs one transposition on each side and one inner permutation.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.layers.linear import GroupedLinear


class ChannelLinear(nn.Module):
    """A grouped layer with features first: it gathers rows, multiplies block by block, and scatters rows.

    Args:
        grouped: The layer to replace.
        input_order: The :attr:`output_order` of the previous layer if its output is features first; ``None`` if the
            input is tokens first, in the model's feature order.
        features_first_out: Whether to leave the output features first, in :attr:`output_order`, for the next layer.
        output_order: The order of the output if it is features first and must match that of another layer, because
            their outputs are multiplied.
        weights_right: Whether the weights are the right factor of each product. onnxruntime has fast integer kernels
            for this; weights as the left factor save a transposition.

    Shape:
        Input (B, S, M), or (M, B, S) with ``input_order``; output (B, S, N), or (N, B, S) with ``features_first_out``.
    """

    bias: Tensor
    inverse_order: Tensor

    def __init__(
        self,
        grouped: GroupedLinear,
        input_order: Tensor | None = None,
        features_first_out: bool = False,
        weights_right: bool = False,
        output_order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = grouped.in_features, grouped.out_features
        self.features_first_in = input_order is not None
        self.features_first_out = features_first_out
        self.weights_right = weights_right
        inputs = grouped.input_index.long()
        inputs = inputs if input_order is None else torch.argsort(input_order)[inputs]
        blocks = grouped.weight.detach()
        self.blocks = nn.ParameterList([(block if weights_right else block.T).contiguous() for block in blocks])
        for group, rows in enumerate(inputs):
            self.register_buffer(f"inputs_{group}", rows.contiguous())
        covered = grouped.output_index.long().flatten()
        rest = torch.ones(grouped.out_features, dtype=torch.bool).index_fill(0, covered, False).nonzero().flatten()
        order = torch.cat([covered, rest])
        self.num_constant = len(rest)
        bias = torch.zeros(grouped.out_features) if grouped.bias is None else grouped.bias.detach()
        self.register_buffer("bias", bias[order])
        self.is_own_order = output_order is None
        self.output_order = order if output_order is None else output_order
        inverse = torch.argsort(order)
        self.register_buffer("inverse_order", inverse if output_order is None else inverse[output_order])

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the grouped layer."""
        x = x if self.features_first_in else x.permute(2, 0, 1)
        batch, length = x.shape[1:]
        rows = x.reshape(x.shape[0], batch * length)
        gathered = [rows.index_select(0, self.get_buffer(f"inputs_{group}")) for group in range(len(self.blocks))]
        pairs = zip(gathered, self.blocks, strict=True)
        if self.weights_right:
            product = torch.cat([part.t() @ block for part, block in pairs], dim=1).t()
        else:
            product = torch.cat([block @ part for part, block in pairs], dim=0)
        bias = self.bias.unsqueeze(1)
        num_products = len(bias) - self.num_constant
        output = product + bias[:num_products]
        if self.num_constant:
            output = torch.cat([output, bias[num_products:].expand(-1, batch * length)], dim=0)
        if self.features_first_out:
            ordered = output if self.is_own_order else output.index_select(0, self.inverse_order)
            return ordered.reshape(-1, batch, length)
        return output.index_select(0, self.inverse_order).t().reshape(batch, length, -1)


def use_channel_layers(encoder: Encoder, weights_right: bool = False, layers: Iterable[int] | None = None) -> None:
    """Replace the grouped layers of an encoder with :class:`ChannelLinear`, in place.

    If W2 and all matrices before it are grouped, the activations between them remain features first, in W1's order.
    This is exact, because activation, gate and dropout are elementwise. The parts of a fused layer are split along the
    last dimension, so their features remain last.

    Args:
        encoder: A pruned encoder. Afterwards, it can only be used for inference.
        weights_right: See :class:`ChannelLinear`.
        layers: Indices of the layers to change; all by default.
    """
    *opening, closing = encoder.sublayers["ffn"]
    is_fused = any(len(encoder.family.parts(kind)) > 1 for kind in opening)
    for number in range(encoder.num_layers) if layers is None else layers:
        matrices = {kind: encoder.find_matrix(number, kind) for kind in encoder.matrices}
        joined = not is_fused and all(isinstance(matrices[kind], GroupedLinear) for kind in (*opening, closing))
        order: Tensor | None = None
        for kind, layer in matrices.items():
            if isinstance(layer, GroupedLinear):
                is_opening = joined and kind in opening
                new = ChannelLinear(
                    layer,
                    input_order=order if kind == closing else None,
                    features_first_out=is_opening,
                    weights_right=weights_right,
                    output_order=order if is_opening else None,
                )
                encoder.set_matrix(number, kind, new.eval())
                if is_opening:
                    order = new.output_order
