"""Block movement pruning: blocks are scored by whether training moves their weights away from zero.

Lagunas, Charlaix, Sanh, Rush: *Block Pruning for Faster Transformers*, EMNLP 2021, after Sanh, Wolf, Rush: *Movement
Pruning*, NeurIPS 2020. In the hybrid form, attention has square blocks, and a neuron of a feed-forward network is one
block of all matrices. A mask passes the gradient straight through to the score of its block, which is the sum of weight
times gradient: training lowers the score if it shrinks the weights, and raises it if it enlarges them. A masked weight
keeps its value, with which it may be restored. In the *hybrid-filled* variant, all weights of the heads with remaining
blocks are restored, and only whole heads and neurons are removed.

Settings are the defaults of the authors' package nn_pruning: blocks of 32 x 32, scores at 0.01, the number of blocks by
a cubic schedule between 10 % and 80 % of the steps (``initial_warmup`` and ``final_warmup`` of 5,400 steps each, of
some 55,000), and, with distillation, 0.9 of the teacher's loss and 0.1 of the task's.

Choices where the paper is not specific, and differences from it:

- The paper thresholds the sigmoid of the scores and tunes a penalty for each size. Here the number of blocks is given,
  as with the package's ``topK``, over all matrices together.
- The block is smaller where 32 does not divide the sizes of a head and of the hidden states.
- Filled weights have the values that they had when they were last masked. Heads are filled in the order of their best
  block, as many as the target permits, so that the filled model has the requested size.
- Without filling, heads whose blocks are all masked are removed, and the other masked blocks stay zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgb_lightning.cost import dense_cost
from pgb_lightning.encoders.family import sublayer_of
from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.schedules import cubic
from pgb_lightning.experiments.baselines.trained.teaching import output_loss, teacher_of
from pgb_lightning.experiments.baselines.trained.units import (
    Mask,
    Place,
    as_masks,
    choose_units,
    num_units,
    places,
    remove_units,
    sublayer_weights,
    unit_sums,
)
from pgb_lightning.model_calls import Call


@dataclass(frozen=True)
class MovementSettings:
    """The settings of block movement pruning in addition to those of fine-tuning.

    Args:
        block: Rows and columns of a block of attention.
        begin: Fraction of the fit before the first block is masked.
        end: Fraction of the fit at which the target is reached.
        score_learning_rate: Learning rate of the scores.
        teacher_weight: Weight of the loss between outputs, with distillation; the task's loss has the rest.
        temperature: Temperature that softens class scores of student and teacher.
    """

    block: int = 32
    begin: float = 0.1
    end: float = 0.8
    score_learning_rate: float = 0.01
    teacher_weight: float = 0.9
    temperature: float = 2.0


class BlockMovement(MaskTraining):
    """Train scores of blocks (see the module).

    Args:
        ratio: Fraction of the weights of the encoder's matrices to remove.
        distillation: Whether to learn from the dense model, too.
        filled: Whether all weights of heads with remaining blocks are restored.
        settings: The settings.
    """

    def __init__(
        self, ratio: float, distillation: bool = False, filled: bool = True, settings: MovementSettings | None = None
    ) -> None:
        super().__init__(ratio)
        self.distillation = distillation
        self.filled = filled
        self.settings = settings or MovementSettings()
        #: Score of each block of an attention matrix, and of each neuron at the key of its closing matrix.
        self.scores: dict[tuple[int, str], Tensor] = {}
        #: All weights of each linear layer, including those that are currently masked.
        self.stored: dict[nn.Linear, Tensor] = {}

    def prepare(self) -> None:
        """Copy the teacher."""
        if self.distillation:
            self.teacher = teacher_of(self.model)

    def start(self) -> None:
        """Create the scores, all equal."""
        device = self.model.device
        self.size = math.gcd(self.settings.block, math.gcd(self.encoder.head_size, self.encoder.hidden_size))
        for linear, matrices in self.encoder.hook_points():
            self.stored[linear] = linear.weight.detach().clone()
            for key, columns in matrices.items():
                shape = (linear.weight if columns is None else linear.weight[columns]).shape
                if sublayer_of(key[1]) == "attention":
                    self.scores[key] = torch.zeros(shape[0] // self.size, shape[1] // self.size, device=device)
                elif key[1] == self._neuron_kind:
                    self.scores[key] = torch.zeros(num_units(self.encoder, "ffn"), device=device)
        self._open = {key: torch.ones_like(score, dtype=torch.bool) for key, score in self.scores.items()}
        for score in self.scores.values():
            score.requires_grad_()
        self.optimizer = torch.optim.AdamW(self.scores.values(), lr=self.settings.score_learning_rate, weight_decay=0.0)
        if self.distillation:
            self.teacher.model.to(device=device)  # type: ignore[call-arg]

    def loss(self, task_loss: Tensor, call: Call) -> Tensor:
        """Add the distance from the teacher's outputs."""
        if not self.distillation:
            return task_loss
        weight = self.settings.teacher_weight
        outputs = output_loss(call, self.teacher.run(call), self.settings.temperature, self.model)
        return weight * outputs + (1 - weight) * task_loss

    @torch.no_grad()
    def before_optimizer(self) -> None:
        """Set the gradients of the scores, and remove those of masked weights."""
        moved = {linear: self._gradient(linear) * stored for linear, stored in self.stored.items()}
        neurons = unit_sums(self.encoder, moved.__getitem__)
        for linear, matrices in self.encoder.hook_points():
            for key, columns in matrices.items():
                if sublayer_of(key[1]) == "attention":
                    part = moved[linear] if columns is None else moved[linear][columns]
                    rows, width = self.scores[key].shape
                    self.scores[key].grad = part.view(rows, self.size, width, self.size).sum((1, 3))
                elif key in self.scores:
                    self.scores[key].grad = neurons[key[0], "ffn"]
        for linear, mask in self._masks(self._open).items():
            self._gradient(linear).mul_(mask)

    @torch.no_grad()
    def after_optimizer(self) -> None:
        """Store the optimizer's update of the weights that were not masked, and mask those with the lowest scores."""
        for linear, mask in self._masks(self._open).items():
            self.stored[linear] = torch.where(mask > 0, linear.weight, self.stored[linear])
        self._open = self._choose_blocks(self.ratio * cubic(self.progress, self.settings.begin, self.settings.end))
        for linear, mask in self._masks(self._open).items():
            linear.weight.copy_(self.stored[linear] * mask)

    def _choose_blocks(self, ratio: float) -> dict[tuple[int, str], Tensor]:
        """Choose the blocks with the highest scores, as many as the budget permits."""
        neuron = sublayer_weights(self.encoder, "ffn") // num_units(self.encoder, "ffn")
        flat = torch.cat([score.flatten() for score in self.scores.values()])
        costs = torch.cat(
            [
                torch.full((score.numel(),), self.size**2 if score.dim() == 2 else neuron)
                for score in self.scores.values()
            ]
        ).to(flat.device)
        order = flat.argsort(descending=True, stable=True)
        is_open = torch.zeros_like(flat, dtype=torch.bool)
        is_open[order] = costs[order].cumsum(0) <= (1 - ratio) * dense_cost(self.encoder).parameters
        parts = torch.split_with_sizes(is_open, [score.numel() for score in self.scores.values()])
        return {key: part.view_as(self.scores[key]) for key, part in zip(self.scores, parts, strict=True)}

    def _masks(self, blocks: Mapping[tuple[int, str], Tensor]) -> dict[nn.Linear, Tensor]:
        """Return the mask of each linear layer's weight, (N, M)."""
        masks = {}
        for linear, matrices in self.encoder.hook_points():
            mask = torch.ones_like(linear.weight)
            for key, columns in matrices.items():
                part = mask if columns is None else mask[columns]
                if sublayer_of(key[1]) == "attention":
                    part = blocks[key].repeat_interleave(self.size, 0).repeat_interleave(self.size, 1).to(mask)
                else:
                    neurons = blocks[key[0], self._neuron_kind].to(mask)
                    part = part * (neurons if key[1] == self._neuron_kind else neurons.unsqueeze(1))
                mask[slice(None) if columns is None else columns] = part
            masks[linear] = mask
        return masks

    def _best_scores(self) -> dict[Place, Tensor]:
        """Return the score of each neuron, and the best score of a block of each head."""
        found: dict[Place, Tensor] = {}
        for layer, sublayer in places(self.encoder):
            count = num_units(self.encoder, sublayer)
            if sublayer == "ffn":
                found[layer, sublayer] = self.scores[layer, self._neuron_kind].detach()
                continue
            *opening, last = self.encoder.sublayers[sublayer]
            sides = [self.scores[layer, kind] for kind in opening] + [self.scores[layer, last].T]
            found[layer, sublayer] = torch.stack([side.detach().reshape(count, -1).amax(1) for side in sides]).amax(0)
        return found

    @property
    def _neuron_kind(self) -> str:
        """The matrix at whose key the scores of neurons are: the one that closes the feed-forward network."""
        return self.encoder.sublayers["ffn"][-1]

    @staticmethod
    def _gradient(linear: nn.Linear) -> Tensor:
        assert linear.weight.grad is not None
        return linear.weight.grad

    @torch.no_grad()
    def finish(self) -> None:
        """Fill the heads that are kept, and remove those without blocks and the masked neurons."""
        best = self._best_scores()
        if self.filled:
            for linear, stored in self.stored.items():
                linear.weight.copy_(stored)
            kept = choose_units(self.encoder, best, self.ratio)
        else:
            left = unit_sums(self.encoder, lambda linear: (linear.weight != 0).float())
            kept = {place: count.nonzero().flatten() for place, count in left.items()}
        # A sublayer that loses all of them still adds its bias, which has no mask.
        remove_units(self.encoder, {place: Mask(mask.units) for place, mask in as_masks(self.encoder, kept).items()})
        self.stored = {}
