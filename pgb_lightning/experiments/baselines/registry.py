"""Registry of the baselines, with a common interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.fisher import collect_fisher, prune_by_fisher
from pgb_lightning.experiments.baselines.kwon import prune_heads_and_neurons
from pgb_lightning.experiments.baselines.magnitude import prune_by_magnitude
from pgb_lightning.experiments.baselines.mask_gradients import collect_mask_gradients
from pgb_lightning.experiments.baselines.masks import kept_weights
from pgb_lightning.experiments.baselines.model_pruning import prune_with_model_pruning
from pgb_lightning.experiments.baselines.top_layers import drop_layers
from pgb_lightning.experiments.baselines.torch_pruning import collect_gradients, prune_with_torch_pruning
from pgb_lightning.modes import eval_mode

Batch = dict[str, Tensor]


def collect_nothing(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Collect no statistics."""


@dataclass(frozen=True)
class Baseline:
    """A published pruning method.

    Args:
        prune: Prunes a fine-tuned model in place, given the statistics of ``collect`` and the fraction of weights to
            remove.
        kind: ``"shapes"`` if layers become smaller; ``"masks"`` if weights only become zero, which saves neither time
            nor memory.
        collect: Collects the statistics that the method needs from labeled calibration batches. They do not depend on
            the fraction to remove.
        package: Additional PyPI package that the method needs.
    """

    prune: Callable[[PreTrainedModel, Any, float], None]
    kind: Literal["shapes", "masks"]
    collect: Callable[[PreTrainedModel, Sequence[Batch]], Any] = collect_nothing
    package: str | None = None

    def check(self) -> None:
        """Check that the required package is installed.

        Raises:
            ValueError: If it is not installed.
        """
        if self.package is not None and find_spec(self.package.replace("-", "_")) is None:
            raise ValueError(
                f"This baseline needs {self.package}, which is not installed. Run: pip install {self.package}"
            )


BASELINES: dict[str, Baseline] = {
    "magnitude": Baseline(prune_by_magnitude, "masks"),
    "model-pruning": Baseline(prune_with_model_pruning, "masks"),
    "fisher": Baseline(prune_by_fisher, "masks", collect_fisher),
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
    """A fine-tuned model with its calibration batches; statistics are collected once, when first needed.

    Args:
        model: A transformers model whose output has a ``loss``. It is not changed.
        batches: Labeled calibration batches.
        found: Statistics that are known already, by the function that would collect them.
    """

    def __init__(
        self, model: PreTrainedModel, batches: Sequence[Batch], found: Mapping[Callable[..., Any], Any] | None = None
    ) -> None:
        self.model = model
        self.batches = batches
        self._found = dict(found or {})

    def prune(self, name: str, model: PreTrainedModel, ratio: float) -> float:
        """Prune a model in place.

        Args:
            name: Name of a baseline in :data:`BASELINES`.
            model: The fine-tuned model itself, or a copy of it.
            ratio: Fraction of the weights of the encoder's matrices to remove.

        Returns:
            The fraction that was removed. It may differ from ``ratio``, since layers, for example, are removed whole.

        Raises:
            ValueError: If there is no such baseline, or it needs a package that is not installed.
        """
        statistics = self.statistics(name)
        total = kept_weights(find_encoder(model))
        with eval_mode(model):
            BASELINES[name].prune(model, statistics, ratio)
        return 1 - kept_weights(find_encoder(model)) / total

    def statistics(self, name: str) -> Any:
        """Return the statistics of a baseline.

        Args:
            name: Name of a baseline in :data:`BASELINES`.

        Raises:
            ValueError: If there is no such baseline, or it needs a package that is not installed.
        """
        if name not in BASELINES:
            raise ValueError(f"Unknown baseline {name!r}. Choose one of {', '.join(map(repr, BASELINES))}.")
        baseline = BASELINES[name]
        baseline.check()
        if baseline.collect not in self._found:
            with eval_mode(self.model):
                self._found[baseline.collect] = baseline.collect(self.model, self.batches)
        return self._found[baseline.collect]
