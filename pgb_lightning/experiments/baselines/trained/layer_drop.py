"""LayerDrop, and dropping of layers before training: methods that remove whole layers.

Fan, Grave, Joulin: *Reducing Transformer Depth on Demand with Structured Dropout*, ICLR 2020. Each layer is skipped in
training with a probability of 0.2, so that any smaller number of layers works. After training, evenly spaced layers are
removed, without further training.

Sajjad, Dalvi, Durrani, Nakov: *On the Effect of Dropping Layers of Pre-trained Transformer Models*, Computer Speech &
Language 77, 2023. Layers are dropped first, and the others are then fine-tuned for 3 epochs: the last ones (*top*),
every other one from the end (*alternate*), or those that change their input least, by cosine similarity
(*contribution*).

Choices where the papers are not specific, and differences from them:

- Both start from the fine-tuned model, as all other methods here, not from the pretrained one.
- The similarity is the mean over all tokens of the first batches of training, during which no layer is dropped.
- Only whole layers can be dropped, so the number of layers nearest to the target is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.experiments.baselines.top_layers import check_droppable, choose_layers, num_dropped, remove_layers
from pgb_lightning.experiments.baselines.trained.callback import MaskTraining

Order = Literal["top", "alternate", "contribution"]


class SkippedLayers:
    """Skips layers of an encoder until ``remove`` is called: they return their input and are not computed.

    Args:
        encoder: The encoder.
        seen: Called with the index, the input and the output of each layer that is computed.
    """

    def __init__(self, encoder: Encoder, seen: Callable[[int, Tensor, Tensor], None] | None = None) -> None:
        self.skipped: Collection[int] = ()
        self._encoder = encoder
        self._seen = seen
        self._layers = encoder.layers
        #: How many entries a layer's output has if it is a tuple, 0 if it is a tensor; unknown before the first one.
        self._entries: int | None = None
        for number, layer in enumerate(self._layers):
            layer.forward = self._wrap(number, layer)

    def _wrap(self, number: int, layer: nn.Module) -> Callable[..., Any]:
        own = layer.forward

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden: Tensor = next(iter(self._encoder.arguments_of(args, kwargs).values()))
            if number in self.skipped and self._entries is not None:
                return (hidden, *[None] * (self._entries - 1)) if self._entries else hidden
            output = own(*args, **kwargs)
            self._entries = len(output) if isinstance(output, tuple) else 0
            if number in self.skipped:
                return (hidden, *output[1:]) if self._entries else hidden
            if self._seen is not None:
                self._seen(number, hidden, output[0] if self._entries else output)
            return output

        return forward

    def remove(self) -> None:
        """Compute all layers again."""
        for layer in self._layers:
            vars(layer).pop("forward", None)


class LayerDrop(MaskTraining):
    """Skip random layers in training, and cut out layers at the end (see the module).

    Args:
        ratio: Fraction of the layers to cut out.
        rate: Probability of skipping a layer.
    """

    def __init__(self, ratio: float, rate: float = 0.2) -> None:
        super().__init__(ratio)
        if not 0 <= rate < 1:
            raise MisconfigurationException(f"LayerDrop: rate={rate} is out of range. Use 0 to below 1, such as 0.2.")
        self.rate = rate

    def prepare(self) -> None:
        """Check that layers can be cut out."""
        _check(self.encoder)

    def start(self) -> None:
        """Begin to skip layers."""
        self.layers = SkippedLayers(self.encoder)
        self.handles.append(self.layers)

    def before_forward(self) -> None:
        """Draw the layers to skip."""
        drawn = torch.rand(self.encoder.num_layers) < self.rate
        self.layers.skipped = drawn.nonzero().flatten().tolist()

    def finish(self) -> None:
        """Remove evenly spaced layers, as many as the target requires."""
        total = self.encoder.num_layers
        remove_layers(self.encoder, choose_layers(total, num_dropped(total, self.ratio), "alternate"))


class DroppedLayers(MaskTraining):
    """Drop layers at the beginning, and train the others (see the module).

    Args:
        ratio: Fraction of the layers to drop.
        order: Which layers are dropped.
        measured: Fraction of the fit in which the contribution of layers is measured.
    """

    def __init__(self, ratio: float, order: Order = "top", measured: float = 0.02) -> None:
        super().__init__(ratio)
        if order not in ("top", "alternate", "contribution"):
            raise MisconfigurationException(
                f"DroppedLayers: order={order!r} is unknown. Use 'top', 'alternate' or 'contribution'."
            )
        self.order = order
        self.measured = measured

    def prepare(self) -> None:
        """Check that layers can be dropped."""
        _check(self.encoder)

    def start(self) -> None:
        """Skip the layers from now on, or begin to measure their contribution."""
        self.similarity = torch.zeros(self.encoder.num_layers, device=self.model.device)
        self.layers = SkippedLayers(self.encoder, self._measure if self.order == "contribution" else None)
        self.handles.append(self.layers)
        if self.order != "contribution":
            self.layers.skipped = self.dropped()

    @torch.no_grad()
    def _measure(self, layer: int, hidden: Tensor, output: Tensor) -> None:
        if not self.layers.skipped:
            self.similarity[layer] += torch.cosine_similarity(hidden.float(), output.float(), dim=-1).mean()

    def after_optimizer(self) -> None:
        """Drop the layers once their contribution is known."""
        if not self.layers.skipped and self.progress >= self.measured:
            self.layers.skipped = self.dropped()

    def dropped(self) -> list[int]:
        """Return the indices of the layers to drop."""
        total = self.encoder.num_layers
        count = num_dropped(total, self.ratio)
        if self.order == "contribution":
            return sorted(self.similarity.topk(count).indices.tolist())
        return sorted(choose_layers(total, count, self.order))

    def finish(self) -> None:
        """Remove the dropped layers."""
        remove_layers(self.encoder, self.layers.skipped)


def _check(encoder: Encoder) -> None:
    try:
        check_droppable(encoder)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
