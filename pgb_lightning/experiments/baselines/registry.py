"""The baselines by name, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.kwon import prune_heads_and_neurons
from pgb_lightning.experiments.baselines.magnitude import prune_by_magnitude
from pgb_lightning.experiments.baselines.mask_gradients import collect_mask_gradients
from pgb_lightning.experiments.baselines.masks import kept_weights
from pgb_lightning.experiments.baselines.model_pruning import prune_as_lightning_does
from pgb_lightning.experiments.baselines.top_layers import drop_layers
from pgb_lightning.experiments.baselines.torch_pruning import collect_gradients, prune_with_torch_pruning
from pgb_lightning.modes import eval_mode

Batch = dict[str, Tensor]


def nothing(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Learn nothing from calibration."""


@dataclass(frozen=True)
class Baseline:
    """A way to prune that is not ours.

    Args:
        prune: Prunes a fine-tuned model in place, given what ``collect`` found and the share of weights to remove.
        kind: ``"shapes"`` if the layers get smaller; ``"masks"`` if they only get zeros, which saves neither time nor
            room in memory.
        collect: Learns from labelled calibration batches what it needs to know of a model, for any share.
        package: A package of PyPI that it needs beyond ours.
    """

    prune: Callable[[PreTrainedModel, Any, float], None]
    kind: Literal["shapes", "masks"]
    collect: Callable[[PreTrainedModel, Sequence[Batch]], Any] = nothing
    package: str | None = None

    def check(self) -> None:
        """Require the package.

        Raises:
            ValueError: It is not installed.
        """
        if self.package is not None and find_spec(self.package.replace("-", "_")) is None:
            raise ValueError(f"this baseline needs {self.package}, which is not installed: pip install {self.package}.")


BASELINES: dict[str, Baseline] = {
    "magnitude": Baseline(prune_by_magnitude, "masks"),
    "model-pruning": Baseline(prune_as_lightning_does, "masks"),
    "kwon": Baseline(prune_heads_and_neurons, "shapes", collect_mask_gradients),
    "kwon-untuned": Baseline(partial(prune_heads_and_neurons, tune=False), "shapes", collect_mask_gradients),
    "top-layers": Baseline(partial(drop_layers, order="top"), "shapes"),
    "alternate-layers": Baseline(partial(drop_layers, order="alternate"), "shapes"),
    "torch-pruning": Baseline(prune_with_torch_pruning, "shapes", collect_gradients, "torch-pruning"),
    "torch-pruning-inside": Baseline(
        partial(prune_with_torch_pruning, narrow=False), "shapes", collect_gradients, "torch-pruning"
    ),
}


class Calibrated:
    """A fine-tuned model with its calibration batches; each baseline learns from them once, when it is first asked for.

    Args:
        model: A transformers model whose output has a ``loss``. It stays as it is.
        batches: Labelled calibration batches.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model = model
        self.batches = batches
        self._found: dict[Any, Any] = {}

    def prune(self, name: str, model: PreTrainedModel, ratio: float) -> float:
        """Prune a model in place.

        Args:
            name: One of :data:`BASELINES`.
            model: The fine-tuned model itself, or a copy of it.
            ratio: Share of the encoder's Q, K, V, O, W1 and W2 weights to remove.

        Returns:
            The share that was removed, which may be another: layers, for one, go whole.

        Raises:
            ValueError: There is no such baseline, or it needs a package that is not installed.
        """
        if name not in BASELINES:
            raise ValueError(f"{name!r} is no baseline; choose one of {', '.join(map(repr, BASELINES))}.")
        baseline = BASELINES[name]
        baseline.check()
        if baseline.collect not in self._found:
            with eval_mode(self.model):
                self._found[baseline.collect] = baseline.collect(self.model, self.batches)
        total = kept_weights(find_encoder(model))
        with eval_mode(model):
            baseline.prune(model, self._found[baseline.collect], ratio)
        return 1 - kept_weights(find_encoder(model)) / total
