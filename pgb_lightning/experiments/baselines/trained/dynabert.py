"""DynaBERT: nested networks of several widths are trained together, and the one of the target size is cut out.

Hou, Huang, Shang, Jiang, Chen, Liu: *DynaBERT: Dynamic BERT with Adaptive Width and Depth*, NeurIPS 2020. Heads and
neurons are first ordered by their importance, the gradient of the loss with respect to a mask. (The paper rewires the
network in this order; here the masks of a width are nested, which is the same.) A width keeps the same fraction of the
heads and neurons of every layer, the most important ones. In each step, the gradients of all widths are added up. Each
learns from the fine-tuned model: its outputs, its embeddings and the hidden states of all layers.

Settings are those of the authors' README: widths 1, 0.75, 0.5 and 0.25, 3 epochs at 2e-5, weights 1.0 of outputs and
0.1 of hidden states, then 3 epochs of training with labels. The paper on PGB used 1 and 3 epochs for large data.

Choices where the paper is not specific, and differences from it:

- Distances between hidden states are relative to the norm of the teacher's, as in
  :class:`~pgb_lightning.callbacks.Distillation`.
- Only the width is adaptive, so that the result is one network of the target size; the stage that also adapts the depth
  is omitted. There is no data augmentation.
- The width of the target is trained in addition to the others. Its number of heads is proportional to the width,
  rounded down but at least one, and its neurons use the rest of the budget.
- Importance is summed over the first batches, on which the network is trained at full width.
- Embeddings are not masked, so their distance from the teacher's is omitted.
- Without distillation, each width learns from labels, as the paper on PGB compares it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from pgb_lightning.cost import dense_cost
from pgb_lightning.distillation import hidden_loss
from pgb_lightning.experiments.baselines.kwon import Kept
from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.teaching import output_loss, teacher_of
from pgb_lightning.experiments.baselines.trained.units import (
    Mask,
    Place,
    as_masks,
    attach_masks,
    closing,
    num_units,
    places,
    remove_units,
    sublayer_weights,
)
from pgb_lightning.model_calls import Call, record_calls


@dataclass(frozen=True)
class DynaBertSettings:
    """The settings of DynaBERT in addition to those of fine-tuning.

    Args:
        widths: Fractions of heads and neurons of the networks besides the full one and that of the target.
        measured: Fraction of the fit in which importance is measured.
        hidden_weight: Weight of the hidden states; that of the outputs is 1.
        temperature: Temperature that softens class scores of student and teacher.
    """

    widths: tuple[float, ...] = (0.75, 0.5, 0.25)
    measured: float = 0.02
    hidden_weight: float = 0.1
    temperature: float = 1.0


class DynaBert(MaskTraining):
    """Train networks of several widths (see the module).

    Args:
        ratio: Fraction of the weights of the encoder's matrices to remove.
        distillation: Whether to learn from the fine-tuned model instead of from labels.
        settings: The settings.
    """

    def __init__(self, ratio: float, distillation: bool = True, settings: DynaBertSettings | None = None) -> None:
        super().__init__(ratio)
        self.distillation = distillation
        self.settings = settings or DynaBertSettings()

    def prepare(self) -> None:
        """Copy the teacher."""
        if self.distillation:
            self.teacher = teacher_of(self.model)

    def start(self) -> None:
        """Start at full width."""
        self.importance = {
            place: torch.zeros(num_units(self.encoder, place[1]), device=self.model.device)
            for place in places(self.encoder)
        }
        self.widths: list[dict[Place, Mask]] = []
        self._masks: dict[Place, Mask] = {}
        if self.distillation:
            self.teacher.model.to(device=self.model.device)  # type: ignore[call-arg]
        self.handles += attach_masks(self.encoder, lambda place: self._masks.get(place, Mask()))

    def loss(self, task_loss: Tensor, call: Call) -> Tensor:
        """Return the loss of the full width, and keep its inputs for the others."""
        self._call = call
        self._answer = self.teacher.run(call) if self.distillation else None
        return self._loss(call, task_loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the gradients of the other widths, one after another, so that only one is in memory at a time."""
        for masks in self.widths:
            self._masks = masks
            with trainer.precision_plugin.train_step_context(), record_calls(self.model) as calls:
                output = self.model(*self._call.args, **self._call.kwargs)
                loss = self._loss(calls[-1], output.loss) / trainer.accumulate_grad_batches
            torch.autograd.backward([loss])
            self._masks = {}

    def _loss(self, call: Call, task_loss: Tensor) -> Tensor:
        if self._answer is None:
            return task_loss
        outputs = output_loss(call, self._answer, self.settings.temperature, self.model)
        return outputs + self.settings.hidden_weight * hidden_loss(call, self._answer)

    @torch.no_grad()
    def before_optimizer(self) -> None:
        """Measure importance: the gradient of a mask is the sum of weight times gradient over its closing columns."""
        if self.widths:
            return
        for place, total in self.importance.items():
            linear = closing(self.encoder, place)
            assert linear.weight.grad is not None
            total += (linear.weight * linear.weight.grad).T.reshape(len(total), -1).sum(1).abs()

    def after_optimizer(self) -> None:
        """Add the other widths once importance is known."""
        if not self.widths and self.progress >= self.settings.measured:
            narrower = [as_masks(self.encoder, self.network(width)) for width in self.settings.widths]
            self.widths = [*narrower, as_masks(self.encoder, self.target())]

    def network(self, width: float) -> Kept:
        """Return the most important heads and neurons of each layer.

        Args:
            width: Fraction that is kept of each layer's.
        """
        heads, neurons = (num_units(self.encoder, name) for name in self.encoder.sublayers)
        return self._most_important(max(int(width * heads), 1), max(int(width * neurons), 1))

    def target(self) -> Kept:
        """Return the heads and neurons of the network of the target's size."""
        per_layer = (1 - self.ratio) * dense_cost(self.encoder).parameters / self.encoder.num_layers
        heads, neurons = (num_units(self.encoder, name) for name in self.encoder.sublayers)
        head, neuron = (
            sublayer_weights(self.encoder, name) / count
            for name, count in zip(self.encoder.sublayers, (heads, neurons), strict=True)
        )
        count = min(max(int((1 - self.ratio) * heads), 1), int(per_layer / head))
        return self._most_important(count, min(int((per_layer - count * head) / neuron), neurons))

    def _most_important(self, heads: int, neurons: int) -> Kept:
        counts = dict(zip(self.encoder.sublayers, (heads, neurons), strict=True))
        return {
            place: scores.topk(counts[place[1]]).indices.sort().values.cpu()
            for place, scores in self.importance.items()
        }

    def finish(self) -> None:
        """Cut out the network of the target's size."""
        remove_units(self.encoder, as_masks(self.encoder, self.target()))
