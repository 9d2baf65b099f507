"""PLATON: weights are kept by an upper confidence bound of their importance.

Zhang, Zuo, Liang, Bukharin, He, Chen, Zhao: *PLATON: Pruning Large Transformer Models with Upper Confidence Bound of
Weight Importance*, ICML 2022. The sensitivity of a weight, the magnitude of weight x gradient, differs from batch to
batch. It is averaged over a window of steps and then exponentially over windows, and so is its distance from this
average, the uncertainty. The score is the product of both: a weight with high uncertainty is kept even if its average
is low. The weights with the lowest scores are set to zero repeatedly. They may recover, since all weights are trained.

The structured variant scores heads and neurons in the same way.

Settings are those of the authors' script for SST-2 (``GLUE/scripts/run_bert_glue.sh``): 6 epochs at 8e-5, averages with
0.85 (importance) and 0.85 (uncertainty; 0.95 for MRPC), windows of 10 steps, and a cubic schedule that begins after
1,000 of some 12,600 steps and ends 5,000 steps before the end.

Choices where the paper is not specific, and differences from it:

- The optimizer is the module's AdamW instead of Adamax.
- The sensitivity of a head or neuron is the mean sensitivity of its weights.
- A head or neuron is set to zero by its weights in the closing matrix.
- As many heads and neurons are kept as fill the budget, so that sizes are comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.schedules import cubic
from pgb_lightning.experiments.baselines.trained.units import (
    Mask,
    Place,
    as_masks,
    choose_units,
    closing,
    remove_units,
    unit_sums,
)


@dataclass(frozen=True)
class PlatonSettings:
    """The settings of PLATON in addition to those of fine-tuning.

    Args:
        importance_decay: β1, the weight of earlier windows in the importance.
        uncertainty_decay: β2, the weight of earlier windows in the uncertainty.
        window: Steps over which the sensitivity is averaged; pruning takes place after each window.
        begin: Fraction of the fit before the first weight is pruned.
        end: Fraction of the fit at which the target is reached.
    """

    importance_decay: float = 0.85
    uncertainty_decay: float = 0.85
    window: int = 10
    begin: float = 0.08
    end: float = 0.6


class Confidence:
    """The upper confidence bound of the importance of weights, or of groups of weights.

    Args:
        settings: The settings.
    """

    def __init__(self, settings: PlatonSettings) -> None:
        self.settings = settings
        self.importance: Tensor | None = None
        self.uncertainty: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, sensitivity: Tensor) -> None:
        """Add the sensitivity of one step.

        Example:
            >>> steady, varying = Confidence(PlatonSettings(window=1)), Confidence(PlatonSettings(window=1))
            >>> for step in range(20):
            ...     steady.add(torch.tensor([1.0]))
            ...     varying.add(torch.tensor([2.0 * (step % 2)]))
            >>> bool(varying.score() > steady.score())
            True
        """
        self._sum = sensitivity if self._sum is None else self._sum + sensitivity
        self._count += 1
        if self._count == self.settings.window:
            self._end_window()

    def _end_window(self) -> None:
        assert self._sum is not None
        mean = self._sum / self._count
        self._sum, self._count = None, 0
        if self.importance is None or self.uncertainty is None:
            self.importance, self.uncertainty = torch.zeros_like(mean), torch.zeros_like(mean)
        self.importance = self.importance.lerp(mean, 1 - self.settings.importance_decay)
        self.uncertainty = self.uncertainty.lerp((mean - self.importance).abs(), 1 - self.settings.uncertainty_decay)

    @property
    def window_ended(self) -> bool:
        """Whether the last step was the last one of a window."""
        return self._count == 0 and self.importance is not None

    def score(self) -> Tensor:
        """Return importance times uncertainty. If no window has ended yet, the first one is ended."""
        if self.importance is None or self.uncertainty is None:
            self._end_window()
        assert self.importance is not None
        assert self.uncertainty is not None
        return self.importance * self.uncertainty


class Platon(MaskTraining):
    """Prune by confidence bounds (see the module).

    Args:
        ratio: Fraction of the weights of the encoder's matrices to remove.
        structured: Whether to remove heads and neurons instead of single weights.
        settings: The settings.
    """

    def __init__(self, ratio: float, structured: bool = False, settings: PlatonSettings | None = None) -> None:
        super().__init__(ratio)
        self.structured = structured
        self.settings = settings or PlatonSettings()

    def start(self) -> None:
        """Start without averages."""
        sizes = unit_sums(self.encoder, lambda linear: torch.ones_like(linear.weight))
        self._sizes = {place: float(size[0]) for place, size in sizes.items()}
        self.of_units = {place: Confidence(self.settings) for place in sizes}
        self.of_weights = {linear: Confidence(self.settings) for linear, _ in self.encoder.hook_points()}

    @torch.no_grad()
    def before_optimizer(self) -> None:
        """Add the sensitivities of this step."""
        if self.structured:
            for place, total in unit_sums(self.encoder, _sensitivity).items():
                self.of_units[place].add(total / self._sizes[place])
        else:
            for linear, bound in self.of_weights.items():
                bound.add(_sensitivity(linear))

    def after_optimizer(self) -> None:
        """Prune after each window, and in each step once the target is reached."""
        bounds = list(self.of_units.values() if self.structured else self.of_weights.values())
        begun, reached = self.progress > self.settings.begin, self.progress >= self.settings.end
        if begun and (reached or bounds[0].window_ended):
            self._set_to_zero(self.ratio * cubic(self.progress, self.settings.begin, self.settings.end))

    @torch.no_grad()
    def _set_to_zero(self, ratio: float) -> None:
        """Set the weights with the lowest scores to zero; for heads and neurons, those in the closing matrix."""
        if self.structured:
            for place, mask in self._unit_masks(ratio).items():
                assert mask.units is not None
                linear = closing(self.encoder, place)
                linear.weight.mul_(mask.units.repeat_interleave(linear.in_features // len(mask.units)))
            return
        scores = torch.cat([bound.score().flatten() for bound in self.of_weights.values()])
        zeros = torch.zeros_like(scores, dtype=torch.bool)
        zeros[scores.topk(round(ratio * len(scores)), largest=False).indices] = True
        parts = torch.split_with_sizes(zeros, [linear.weight.numel() for linear in self.of_weights])
        for linear, part in zip(self.of_weights, parts, strict=True):
            linear.weight[part.view_as(linear.weight)] = 0.0

    def _unit_masks(self, ratio: float) -> dict[Place, Mask]:
        """Return the masks of heads and neurons. A sublayer that loses all of them still adds its bias."""
        kept = choose_units(self.encoder, {place: bound.score() for place, bound in self.of_units.items()}, ratio)
        return {place: Mask(mask.units) for place, mask in as_masks(self.encoder, kept).items()}

    def finish(self) -> None:
        """Prune for the last time, and remove heads and neurons."""
        if self.structured:
            remove_units(self.encoder, self._unit_masks(self.ratio))
        else:
            self._set_to_zero(self.ratio)


def _sensitivity(linear: nn.Linear) -> Tensor:
    """Return |weight x gradient|."""
    assert linear.weight.grad is not None
    return (linear.weight * linear.weight.grad).abs()
