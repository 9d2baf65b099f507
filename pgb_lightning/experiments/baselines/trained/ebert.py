"""EBERT: gates that depend on the input decide which heads and neurons a sample uses.

Liu, Li, Li, Cheng: *EBERT: Efficient BERT Inference with Dynamic Structured Pruning*, Findings of ACL 2021. A small
network for each sublayer reads one vector of each sample, the first token's (in the first layer the mean over tokens,
since the first token has no context there), and opens or closes the gate of each head or neuron. In training, gates are
drawn from a Gumbel softmax of two classes, as 0 or 1 with the gradient of the soft value. A penalty pulls the mean cost
to the target. Network and gates are trained together for 3 epochs; 3 epochs of training follow, as in the paper on PGB.

Choices where the paper is not specific, and differences from it:

- The result here is static: the heads and neurons whose gates are open most often, as many as the budget permits. FLOPs
  and latency are those of this network. The authors' network keeps its gates: its samples use different heads and
  neurons, which only saves time if each sample is computed separately, and the model is not smaller. The fraction of
  the weights that it used for the last batches is :attr:`Ebert.open_fraction`.
- The network of a sublayer has one hidden layer, a quarter as wide as the hidden states, and no batch normalization.
- The penalty is the squared distance of the mean cost of a batch, in weights, from a target that grows linearly in the
  first half of the fit; its weight is 10, and the gates begin open.
- Soft values have the temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from pgb_lightning.cost import dense_cost
from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.schedules import linear
from pgb_lightning.experiments.baselines.trained.units import (
    Mask,
    Place,
    as_masks,
    attach_masks,
    choose_units,
    num_units,
    places,
    remove_units,
    sublayer_weights,
)
from pgb_lightning.model_calls import Call


@dataclass(frozen=True)
class EbertSettings:
    """The settings of EBERT in addition to those of fine-tuning.

    Args:
        gate_learning_rate: Learning rate of the networks that open and close gates.
        penalty: Weight of the squared distance from the target.
        target_reached: Fraction of the fit at which the target has its final value.
        initial: Logit of an open gate at the beginning.
        decay: Weight of earlier batches in the frequencies with which gates are open.
    """

    gate_learning_rate: float = 1e-3
    penalty: float = 10.0
    target_reached: float = 0.5
    initial: float = 3.0
    decay: float = 0.95


class Gates(nn.Module):
    """Opens or closes each head or neuron of a sublayer for each sample.

    Args:
        width: Width of the hidden states.
        units: Number of heads or neurons.
        initial: Logit of an open gate at the beginning.
    """

    def __init__(self, width: int, units: int, initial: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, max(width // 4, 1)), nn.ReLU(), nn.Linear(max(width // 4, 1), units)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, initial)

    def forward(self, read: Tensor) -> Tensor:
        """Return 0 or 1 for each sample and unit, (B, units) for (B, width)."""
        logits: Tensor = self.layers(read.float())
        if not self.training:
            return (logits > 0).to(logits)
        drawn: Tensor = gumbel_softmax(torch.stack([logits, torch.zeros_like(logits)], -1), hard=True)
        return drawn[..., 0]


class Ebert(MaskTraining):
    """Train gates that depend on the input (see the module).

    Args:
        ratio: Fraction of the weights of the encoder's matrices to remove.
        settings: The settings.
    """

    def __init__(self, ratio: float, settings: EbertSettings | None = None) -> None:
        super().__init__(ratio)
        self.settings = settings or EbertSettings()
        #: Fraction of the encoder's weights that the samples of the last batches used, on average.
        self.open_fraction = 1.0

    def start(self) -> None:
        """Create the gates, all open."""
        device = self.model.device
        self.gates = {
            place: Gates(self.encoder.hidden_size, num_units(self.encoder, place[1]), self.settings.initial).to(device)
            for place in places(self.encoder)
        }
        self.frequency: dict[Place, Tensor] = {}
        self._read: dict[int, Tensor] = {}
        self._drawn: dict[Place, Tensor] = {}
        parameters = [parameter for gates in self.gates.values() for parameter in gates.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.settings.gate_learning_rate)
        for number, layer in enumerate(self.encoder.layers):
            self.handles.append(layer.register_forward_pre_hook(self._reader(number), with_kwargs=True))
        self.handles += attach_masks(self.encoder, self._mask_of)

    def _reader(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = next(iter(self.encoder.arguments_of(args, kwargs).values()))
            self._read[layer] = (hidden[:, 0] if layer else hidden.mean(1)).detach()
            for place in [place for place in self.gates if place[0] == layer]:
                self._drawn[place] = self.gates[place].train(self.model.training)(self._read[layer])

        return read

    def _mask_of(self, place: Place) -> Mask:
        return Mask(self._drawn[place])

    def loss(self, task_loss: Tensor, call: Call) -> Tensor:
        """Add the penalty, and count which gates are open."""
        used = []
        for place, drawn in self._drawn.items():
            used.append(sublayer_weights(self.encoder, place[1]) * drawn.mean())
            mean = drawn.detach().mean(0)
            self.frequency[place] = self.frequency.get(place, mean).lerp(mean, 1 - self.settings.decay)
        fraction = torch.stack(used).sum() / dense_cost(self.encoder).parameters
        self.open_fraction = self.settings.decay * self.open_fraction + (1 - self.settings.decay) * float(
            fraction.detach()
        )
        target = 1 - self.ratio * linear(self.progress, 0.0, self.settings.target_reached)
        return task_loss + self.settings.penalty * (fraction - target).square()

    def finish(self) -> None:
        """Remove the heads and neurons whose gates are open least often."""
        kept = as_masks(self.encoder, choose_units(self.encoder, self.frequency, self.ratio))
        # A sublayer that loses all of them still adds its bias, which has no gate.
        remove_units(self.encoder, {place: Mask(mask.units) for place, mask in kept.items()})
