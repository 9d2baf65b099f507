"""Per-sample gradients of the loss with respect to masks on heads and neurons, collected in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.calibration.collect import LayerInput
from pgb_lightning.calibration.hooks import EncoderCall
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.family import SUBLAYERS, Sublayer
from pgb_lightning.encoders.find import find_encoder

#: Maximum number of real tokens on which masks are tuned: the same as for PGB's compensation.
MAX_TOKENS = PruningConfig().compensation_tokens


@dataclass(frozen=True)
class MaskGradients:
    """Statistics from one pass over the calibration samples.

    Args:
        gradients: Gradient of each sample's loss with respect to the mask of each head or neuron, of shape
            (samples, units), in double precision, by (layer index, sublayer). Query heads that share keys and values
            have one mask.
        inputs: The first layer's inputs, one entry per batch, limited to :data:`MAX_TOKENS` real tokens.
    """

    gradients: dict[tuple[int, Sublayer], Tensor]
    inputs: list[LayerInput]


def collect_mask_gradients(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> MaskGradients:
    """Collect mask gradients and first-layer inputs.

    A mask multiplies the output of a head or neuron, which is an input of the sublayer's last matrix. Its gradient is
    therefore the sum of activation times gradient at that input. The ``grad`` of the parameters is not changed.

    Args:
        model: A dense model in eval mode; its output has a ``loss``, the mean over samples.
        batches: Labeled batches.
    """
    encoder = find_encoder(model)
    keys: list[tuple[int, Sublayer]] = [(layer, name) for layer in range(encoder.num_layers) for name in SUBLAYERS]
    # A list for each key, because some models run a layer several times, with the same masks.
    activations: dict[tuple[int, Sublayer], list[Tensor]] = {key: [] for key in keys}
    parts: dict[tuple[int, Sublayer], list[Tensor]] = {key: [] for key in keys}
    inputs: list[LayerInput] = []
    given: list[dict[str, Any]] = []

    def record_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append(encoder.arguments_of(args, kwargs))

    def record_activation(key: tuple[int, Sublayer]) -> Any:
        return lambda module, args: activations[key].append(args[0])

    handles = [layer.register_forward_pre_hook(record_input, with_kwargs=True) for layer in encoder.layers]
    for layer, sublayer in keys:
        closing = encoder.matrix(layer, encoder.sublayers[sublayer][-1])
        handles.append(closing.register_forward_pre_hook(record_activation((layer, sublayer))))
    room = MAX_TOKENS
    try:
        for batch in batches:
            given.clear()
            for seen in activations.values():
                seen.clear()
            with torch.enable_grad():
                loss = model(**batch).loss
                gradients = iter(torch.autograd.grad(loss, [part for key in keys for part in activations[key]]))
            for key in keys:
                # The loss is the mean over the batch, so a sample's own gradient is B times its part.
                runs = [(part.detach() * next(gradients)).sum(1) * len(part) for part in activations[key]]
                unit = encoder.head_group if key[1] == "attention" else 1
                parts[key].append(sum(runs).view(len(runs[0]), -1, unit).sum(2).double().cpu())  # type: ignore[union-attr]
            if room > 0:
                hidden = next(iter(given[0].values())).detach().cpu()
                tokens = batch.get("attention_mask", torch.ones(hidden.shape[:2])).bool().cpu()
                needed, call = encoder.family.arguments, EncoderCall(hidden, None)
                arguments = [{name: call.detached(run[name]) for name in needed if name in run} for run in given]
                inputs.append(LayerInput(hidden, tokens, arguments))
                room -= int(tokens.sum())
    finally:
        for handle in handles:
            handle.remove()
    return MaskGradients({key: torch.cat(part) for key, part in parts.items()}, inputs)
