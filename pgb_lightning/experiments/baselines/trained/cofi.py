"""CoFi: hard concrete masks on sublayers, heads and neurons together, with a Lagrangian for the target size.

Xia, Zhong, Chen: *Structured Pruning Learns Compact and Accurate Models*, ACL 2022. A head or neuron counts as kept
with the probability that both its own mask and that of its sublayer are open. The expected fraction removed follows a
target that grows linearly, by two Lagrange multipliers with gradient ascent while the masks are trained by descent.
With distillation, the outputs and the hidden states of some layers are compared with the dense model's; each of these
layers teaches the currently closest layer of the student whose feed-forward sublayer is not masked.

Settings are those of the authors' script for large tasks (``scripts/run_CoFi.sh``): 1 of 20 epochs before pruning, 2
epochs in which the target grows, then 20 epochs of fine-tuning of the smaller model. On small tasks the authors train
100 epochs, 4 before pruning and 20 for the target to grow.

Choices where the paper is not specific, and differences from it:

- Hidden dimensions are not masked, so that sizes are comparable: all methods here prune the insides of sublayers.
- Embeddings are trained, as with all methods here; the script freezes them.
- The expected fraction is not exactly the target at the end. Units are therefore removed in the order of their
  probability of being open until the target is met; those that stay keep the value of their mask.
- Teaching layers are the last ones of each quarter of the encoder (3, 6, 9 and 12 of BERT-base).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgb_lightning.cost import dense_cost
from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.hard_concrete import probability_open, sample, typical
from pgb_lightning.experiments.baselines.trained.schedules import linear
from pgb_lightning.experiments.baselines.trained.teaching import output_loss, teacher_of
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
class CoFiSettings:
    """The settings of CoFi in addition to those of fine-tuning.

    Args:
        begin: Fraction of the fit before masks are used.
        target_reached: Fraction of the fit at which the target of the Lagrangian has its final value.
        mask_learning_rate: Learning rate of the masks and of the multipliers.
        neuron_location: Initial location log α of the neurons' masks.
        other_location: Initial location of the masks of heads and sublayers, which are closed later.
        location_limit: Limit of the magnitude of locations, log 100.
        output_weight: Weight of the loss between outputs; the loss between hidden states has the rest.
        temperature: Temperature that softens class scores of student and teacher.
        projection_learning_rate: Learning rate of the linear map from the student's hidden states to the teacher's.
    """

    begin: float = 0.05
    target_reached: float = 0.15
    mask_learning_rate: float = 0.01
    neuron_location: float = 0.0
    other_location: float = 10.0
    location_limit: float = math.log(100)
    output_weight: float = 0.1
    temperature: float = 2.0
    projection_learning_rate: float = 2e-5


class CoFi(MaskTraining):
    """Train hard concrete masks (see the module).

    Args:
        ratio: Fraction of the weights of the encoder's matrices to remove.
        distillation: Whether to learn from the dense model instead of from labels.
        settings: The settings.
    """

    def __init__(self, ratio: float, distillation: bool = True, settings: CoFiSettings | None = None) -> None:
        super().__init__(ratio)
        self.distillation = distillation
        self.settings = settings or CoFiSettings()
        self.units: dict[Place, Tensor] = {}
        self.outputs: dict[Place, Tensor] = {}
        self._drawn: dict[Place, Mask] = {}
        self._final: dict[Place, Mask] = {}

    def prepare(self) -> None:
        """Copy the teacher."""
        if self.distillation:
            self.teacher = teacher_of(self.model)

    def start(self) -> None:
        """Create all masks, the multipliers and the projection."""
        device, settings = self.model.device, self.settings
        for place in places(self.encoder):
            location = settings.other_location if place[1] == "attention" else settings.neuron_location
            count = num_units(self.encoder, place[1])
            self.units[place] = torch.full((count,), location, device=device, requires_grad=True)
            self.outputs[place] = torch.tensor(settings.other_location, device=device, requires_grad=True)
        self.multipliers = torch.zeros(2, device=device, requires_grad=True)
        size = self.encoder.hidden_size
        self.projection = nn.Linear(size, size, bias=False, device=device)
        nn.init.eye_(self.projection.weight)
        groups = [
            {"params": [*self.units.values(), *self.outputs.values()], "lr": settings.mask_learning_rate},
            {"params": [self.multipliers], "lr": settings.mask_learning_rate, "maximize": True},
            {"params": [self.projection.weight], "lr": settings.projection_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        if self.distillation:
            self.teacher.model.to(device=device)  # type: ignore[call-arg]
        self.handles += attach_masks(self.encoder, self.mask_of)

    def before_forward(self) -> None:
        """Draw the masks of this batch."""
        self._drawn = {place: Mask(sample(self.units[place]), sample(self.outputs[place])) for place in self.units}
        self._final = {}

    @torch.no_grad()
    def after_optimizer(self) -> None:
        """Limit the locations to the range in which their gradients do not vanish."""
        for location in (*self.units.values(), *self.outputs.values()):
            location.clamp_(-self.settings.location_limit, self.settings.location_limit)

    def mask_of(self, place: Place) -> Mask:
        """Return the masks of a sublayer: drawn in training, and without noise otherwise."""
        if self.progress < self.settings.begin:
            return Mask()
        if self.model.training:
            return self._drawn[place]
        self._final = self._final or self.final_masks()
        return self._final[place]

    def loss(self, task_loss: Tensor, call: Call) -> Tensor:
        """Add the Lagrangian to the loss of the task or of distillation."""
        if self.distillation:
            answer = self.teacher.run(call)
            outputs = output_loss(call, answer, self.settings.temperature, self.model)
            weight = self.settings.output_weight
            task_loss = weight * outputs + (1 - weight) * self._layer_loss(call, answer)
        if self.progress < self.settings.begin:
            return task_loss
        target = self.ratio * linear(self.progress, self.settings.begin, self.settings.target_reached)
        missed = self.expected_removed() - target
        return task_loss + self.multipliers[0] * missed + self.multipliers[1] * missed.square()

    def expected_removed(self) -> Tensor:
        """Return the expected fraction of the encoder's weights that is masked."""
        scores = self._scores()
        sizes = [sublayer_weights(self.encoder, place[1]) * scores[place].mean() for place in scores]
        return 1 - torch.stack(sizes).sum() / dense_cost(self.encoder).parameters

    def _scores(self) -> dict[Place, Tensor]:
        """Return the probability that each unit is open."""
        return {p: probability_open(self.units[p]) * probability_open(self.outputs[p]) for p in self.units}

    def _layer_loss(self, call: Call, answer: Call) -> Tensor:
        """Compare each teaching layer with the closest layer of the student that is not masked."""
        layers = self.encoder.order
        depth = len(layers)
        losses = []
        for first in range(0, len(call.hidden), depth):  # a step may call the encoder several times
            alive = [run for run in range(depth) if self._is_alive(layers[run])] or [depth - 1]
            projected = [self.projection(call.hidden[first + run].float()) for run in alive]
            for run in sorted({max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)}):
                target = answer.hidden[first + run].float()
                tokens = answer.token_mask(target, first + run).unsqueeze(-1)
                errors = torch.stack([((each - target).square() * tokens).sum() for each in projected])
                losses.append(errors.min() / (tokens.sum() * target.shape[-1]).clamp_min(1))
        return torch.stack(losses).sum()

    def _is_alive(self, layer: int) -> bool:
        output = self.mask_of((layer, "ffn")).output
        return output is None or bool(output > 0)

    @torch.no_grad()
    def final_masks(self) -> dict[Place, Mask]:
        """Return the masks that meet the target, without noise."""
        kept = as_masks(self.encoder, choose_units(self.encoder, self._scores(), self.ratio))
        masks: dict[Place, Mask] = {}
        for place, mask in kept.items():
            assert mask.units is not None
            assert mask.output is not None
            masks[place] = Mask(mask.units * typical(self.units[place]), mask.output * typical(self.outputs[place]))
        return masks

    def finish(self) -> None:
        """Remove masked units."""
        remove_units(self.encoder, self.final_masks())
