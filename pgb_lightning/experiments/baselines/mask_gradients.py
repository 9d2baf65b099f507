"""Gradients of the loss by masks on heads and neurons, sample by sample, in one pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.calibration.collect import LayerInput
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import SUBLAYERS, Sublayer
from pgb_lightning.encoders.find import find_encoder

#: Real tokens on which masks are tuned, at most: as many as PGB compensates on.
MAX_TOKENS = PruningConfig().compensation_tokens


@dataclass(frozen=True)
class MaskGradients:
    """What one pass over the calibration samples tells.

    Args:
        gradients: Gradient of each sample's loss by the mask of each head or neuron, (samples, units), in double
            precision, by (layer number, sublayer).
        inputs: The first layer's inputs, batch by batch, up to a number of tokens.
    """

    gradients: dict[tuple[int, Sublayer], Tensor]
    inputs: list[LayerInput]


def collect_mask_gradients(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> MaskGradients:
    """Run the pass.

    A mask multiplies what a head or neuron hands on to the sublayer's last matrix, so its gradient is the sum of
    activation times gradient there. No parameter's ``grad`` is touched.

    Args:
        model: A dense model, in eval mode; its output has a ``loss``, the mean over samples.
        batches: Labelled batches.
    """
    encoder = find_encoder(model)
    keys: list[tuple[int, Sublayer]] = [(layer, name) for layer in range(len(encoder.layers)) for name in SUBLAYERS]
    activations: dict[tuple[int, Sublayer], Tensor] = {}
    parts: dict[tuple[int, Sublayer], list[Tensor]] = {key: [] for key in keys}
    inputs: list[LayerInput] = []
    first = encoder.layers[0]
    parameters = inspect.signature(first.forward).parameters
    entered: dict[str, Any] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.update({**dict(zip(parameters, args, strict=False)), **kwargs})

    def watch(key: tuple[int, Sublayer]) -> Any:
        return lambda module, args: activations.__setitem__(key, args[0])

    handles = [first.register_forward_pre_hook(enter, with_kwargs=True)]
    for layer, sublayer in keys:
        closing = encoder.matrix(layer, SUBLAYERS[sublayer][-1])
        handles.append(closing.register_forward_pre_hook(watch((layer, sublayer))))
    room = MAX_TOKENS
    try:
        for batch in batches:
            with torch.enable_grad():
                loss = model(**batch).loss
                gradients = torch.autograd.grad(loss, [activations[key] for key in keys])
            for key, gradient in zip(keys, gradients, strict=True):
                # The loss is the batch's mean: a sample's own gradient is B times its part of it.
                summed = (activations[key].detach() * gradient).sum(1) * len(gradient)
                unit = encoder.head_size if key[1] == "attention" else 1
                parts[key].append(summed.view(len(gradient), -1, unit).sum(2).double().cpu())
            if room > 0:
                hidden = entered["hidden_states"].detach().cpu()
                tokens = batch.get("attention_mask", torch.ones(hidden.shape[:2])).bool().cpu()
                inputs.append(LayerInput(hidden, entered.get("attention_mask"), tokens))
                room -= int(tokens.sum())
    finally:
        for handle in handles:
            handle.remove()
    return MaskGradients({key: torch.cat(part) for key, part in parts.items()}, inputs)
