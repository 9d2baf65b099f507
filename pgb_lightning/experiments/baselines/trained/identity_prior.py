"""SNIP of Lin et al.: a penalty shrinks residual mappings toward zero, and the smallest ones are removed.

Lin, Liu, Yang, Hua, Roth: *Pruning Redundant Mappings in Transformer Models via Spectral-Normalized Identity Prior*,
Findings of EMNLP 2020. (Not SNIP of Lee et al. 2019.) If a residual mapping outputs zero, only the identity remains.
The prior is a penalty on the norm of each mapping's output, here that of a single head or a whole feed-forward network;
mappings with the smallest norm are removed step by step. Spectral normalization bounds the largest singular value of
each matrix, so that norms are comparable and larger weights elsewhere do not circumvent the penalty.

There is no public implementation. All settings are therefore our choice:

- The norm of a mapping is the root mean square over the features that it adds to a token, averaged over tokens and, by
  an exponential average, over batches.
- The penalty is the sum of all norms, with a weight of 0.001.
- The bound of a matrix is the singular value that it has when training starts, so that the fine-tuned model is not
  changed at the start; it is estimated by one step of the power method after each step of the optimizer.
- The fraction removed grows by a cubic schedule between 10 % and 70 % of 3 epochs at 2e-5, followed by 3 epochs of
  training the remaining weights.
- Mappings are removed in the order of their norms as long as the budget permits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.schedules import cubic
from pgb_lightning.experiments.baselines.trained.units import (
    Mask,
    Place,
    as_masks,
    attach_masks,
    choose_units,
    closing,
    num_units,
    places,
    remove_units,
)
from pgb_lightning.model_calls import Call


@dataclass(frozen=True)
class IdentityPriorSettings:
    """The settings of the method in addition to those of fine-tuning.

    Args:
        penalty: Weight of the sum of all norms.
        decay: Weight of earlier batches in the average of the norms.
        begin: Fraction of the fit before the first mapping is removed.
        end: Fraction of the fit at which the target is reached.
    """

    penalty: float = 0.001
    decay: float = 0.9
    begin: float = 0.1
    end: float = 0.7


class SpectralBound:
    """Bounds the largest singular value of a matrix by its initial one.

    Args:
        weight: The matrix.
    """

    def __init__(self, weight: Tensor) -> None:
        _, values, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
        self.bound, self._right = values[0], right[0]

    @torch.no_grad()
    def apply(self, weight: Tensor) -> None:
        """Scale the matrix down in place, if its largest singular value has grown.

        Example:
            >>> weight = torch.diag(torch.tensor([2.0, 1.0]))
            >>> bound = SpectralBound(weight)
            >>> bound.apply(weight.mul_(3))
            >>> weight.diagonal().tolist()
            [2.0, 1.0]
        """
        left = nn.functional.normalize(weight.float() @ self._right, dim=0)
        product = weight.float().T @ left
        self._right = nn.functional.normalize(product, dim=0)
        weight *= (self.bound / product.norm().clamp_min(1e-12)).clamp(max=1).to(weight)


class IdentityPrior(MaskTraining):
    """Shrink residual mappings toward zero, and remove the smallest (see the module).

    Args:
        ratio: Fraction of the weights of the encoder's matrices to remove.
        settings: The settings.
    """

    def __init__(self, ratio: float, settings: IdentityPriorSettings | None = None) -> None:
        super().__init__(ratio)
        self.settings = settings or IdentityPriorSettings()

    def start(self) -> None:
        """Start without masks."""
        self.bounds = {linear: SpectralBound(linear.weight) for linear, _ in self.encoder.hook_points()}
        self.masks: dict[Place, Mask] = {}
        self.norms: dict[Place, Tensor] = {}
        self._seen: dict[Place, list[Tensor]] = {}
        self.handles += attach_masks(self.encoder, lambda place: self.masks.get(place, Mask()))
        for place in places(self.encoder):
            self.handles.append(closing(self.encoder, place).register_forward_hook(self._record(place)))

    def before_forward(self) -> None:
        """Forget the last batch."""
        self._seen = {place: [] for place in places(self.encoder)}

    def _record(self, place: Place) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.model.training:
                weight = closing(self.encoder, place).weight
                norms = head_norms(args[0], weight, num_units(self.encoder, place[1]))
                self._seen[place].append(norms if place[1] == "attention" else _root_mean_square(output))

        return record

    def loss(self, task_loss: Tensor, call: Call) -> Tensor:
        """Add the penalty, and average the norms."""
        total = torch.zeros_like(task_loss)
        for place, runs in self._seen.items():
            norm = torch.stack([_mean_over_tokens(run, call) for run in runs]).mean(0)
            total = total + norm.sum()
            before = self.norms.get(place, norm.detach())
            self.norms[place] = before.lerp(norm.detach(), 1 - self.settings.decay)
        return task_loss + self.settings.penalty * total

    def after_optimizer(self) -> None:
        """Bound all matrices, and mask more mappings."""
        for linear, bound in self.bounds.items():
            bound.apply(linear.weight)
        if self.progress > self.settings.begin:
            self.masks = self._choose(self.ratio * cubic(self.progress, self.settings.begin, self.settings.end))

    def _choose(self, ratio: float) -> dict[Place, Mask]:
        """Return the masks that keep the largest mappings. Once a mapping is masked, its norm is 0."""
        return as_masks(self.encoder, choose_units(self.encoder, self.norms, ratio))

    def finish(self) -> None:
        """Remove the masked mappings."""
        remove_units(self.encoder, self._choose(self.ratio))


def head_norms(read: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Return the root mean square of each head's contribution to a token, without computing the contributions.

    Args:
        read: The input of the closing matrix, (B, S, M).
        weight: The closing matrix, (N, M).
        heads: The number of heads.

    Returns:
        The norms, (B, S, heads).
    """
    by_head = weight.float().view(len(weight), heads, -1)
    products = torch.einsum("nhe,nhf->hef", by_head, by_head)
    parts = read.float().reshape(*read.shape[:2], heads, -1)
    squares = torch.einsum("bshe,hef,bshf->bsh", parts, products, parts)
    return (squares.clamp_min(0) / len(weight) + 1e-12).sqrt()


def _root_mean_square(output: Tensor) -> Tensor:
    """Return (B, S, 1) for (B, S, N)."""
    return (output.float().square().mean(-1, keepdim=True) + 1e-12).sqrt()


def _mean_over_tokens(norms: Tensor, call: Call) -> Tensor:
    """Return the mean over tokens without padding, (mappings,) for (B, S, mappings)."""
    tokens = call.token_mask(norms).unsqueeze(-1)
    return (norms * tokens).sum((0, 1)) / tokens.sum().clamp_min(1)
