"""The loss whose gradients calibration collects: with labels, or without (``fisher`` of ``PruningConfig``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.batch_labels import LOOKUP_ERRORS, has_labels, inputs_without_labels
from pgb_lightning.calibration.call_losses import (
    LIKELIHOODS,
    UnavailableError,
    call_direction,
    call_likelihood,
    seen_likelihood,
)
from pgb_lightning.calibration.drawn import make_generator
from pgb_lightning.config import Fisher
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.label_kind import LossWatcher
from pgb_lightning.model_calls import Call, outermost_models, record_calls

#: The order of preference of ``fisher="auto"``, which uses the first that is available.
ORDER: tuple[Fisher, ...] = ("labels", "predictions", "outputs")

#: Descriptions for messages.
DESCRIPTIONS: dict[Fisher, str] = {
    "labels": "the model's own loss",
    "predictions": "labels drawn from the model's predictions",
    "outputs": "random directions of the model's outputs",
}

#: Calls of models, each paired with the model that was called.
Recorded = list[tuple[PreTrainedModel, Call]]


@dataclass
class Pass:
    """One pass of a batch through a model.

    Args:
        value: The loss with the data's labels, if there is one.
        failure: The error raised by the code that calls the model, such as one about missing labels.
        calls: The differentiable calls of the models that hold the encoder.
        watcher: The loss functions that were applied.
    """

    value: Tensor | None
    failure: Exception | None
    calls: Recorded
    watcher: LossWatcher

    @property
    def has_head(self) -> bool:
        """Whether a model with a head was called."""
        return any(call.logits() for _, call in self.calls)

    @property
    def has_loss(self) -> bool:
        """Whether a loss was computed, by the model or elsewhere, so that there are labels."""
        losses = [call.output.get("loss") for _, call in self.calls if isinstance(call.output, Mapping)]
        return any(loss is not None for loss in losses) or any(each.name in LIKELIHOODS for each in self.watcher.seen)


class FisherLoss:
    """Runs a model on a batch and returns the mean over samples of the loss whose gradients calibration squares.

    Without labels, the loss of a sample is a sum over its outputs or tokens, such that its gradients have the Fisher
    information (``"predictions"``) or JᵀJ (``"outputs"``) as their second moment. Random draws depend only on the seed
    and the number of the batch. The global random state is not used.

    Args:
        root: The module that holds the encoder.
        encoder: The encoder.
        run: Runs ``root`` on a batch and returns the loss with the data's labels. Without labels, only its calls of
            transformers models are used, and it may fail after them because labels are missing.
        fisher: The setting of :class:`~pgb_lightning.PruningConfig`. With ``"auto"``, the first batch determines which
            loss is used.
        temperature: The setting ``fisher_temperature``.
        seed: Random seed.
        failures: Types of errors of ``run`` that may be caused by missing labels.

    Attributes:
        used: The setting that is used; with ``"auto"``, ``None`` until the first batch.
        reason: Why ``"auto"`` does not use the labels; empty if it does.
    """

    def __init__(
        self,
        root: nn.Module,
        encoder: Encoder,
        run: Callable[[Any], Tensor | None],
        fisher: Fisher = "auto",
        temperature: float = 1.0,
        seed: int = 0,
        failures: tuple[type[Exception], ...] = LOOKUP_ERRORS,
    ) -> None:
        self.used: Fisher | None = None if fisher == "auto" else fisher
        self.reason = ""
        self._outermost = outermost_models(root, encoder)
        self._encoder = encoder
        self._run = run
        self._temperature = temperature
        self._seed = seed
        self._failures = failures
        self._numbers = count()

    def __call__(self, batch: Any, number: int | None = None) -> Tensor | None:
        """Return the loss of a batch, or ``None`` to skip it.

        Args:
            batch: The batch.
            number: Its number, on which random draws depend; by default the number of earlier calls.

        Raises:
            ValueError: If the model does not have what ``fisher`` needs.
        """
        number = next(self._numbers) if number is None else number
        if self.used == "labels":
            return self._run(batch)
        found = self._observe(batch)
        lacks_labels = not found.has_loss and self._lacks_labels(batch, found.failure)
        if found.failure is not None and not (found.calls and lacks_labels):
            raise found.failure
        if found.failure is None and found.value is None and not (found.has_head and lacks_labels):
            return None  # skipped by the code that calls the model
        if self.used is None:
            return self._choose(found, number)
        return self._drawn(self.used, found, number)

    def describe(self) -> str:
        """Return a description of the loss that is used and the reason, for messages."""
        if self.used is None:
            return "no batch has a loss"
        because = f", because {self.reason}" if self.reason else ""
        return f"calibration uses the gradients of {DESCRIPTIONS[self.used]} (fisher={self.used!r}){because}"

    def _choose(self, found: Pass, number: int) -> Tensor:
        """Use the first of :data:`ORDER` that is available, and return its loss."""
        if found.value is not None:
            self.used = "labels"
            return found.value
        reasons = ["there are no labels"]
        if found.failure is not None:
            error = found.failure.__cause__ or found.failure
            what = str(error).partition(". ")[0]
            reasons = [f"the loss fails without labels ({type(error).__name__}: {what})"]
        for fisher in ORDER[1:]:
            try:
                loss = self._drawn(fisher, found, number)
            except UnavailableError as unavailable:
                reasons.append(str(unavailable))
            else:
                self.used, self.reason = fisher, ", and ".join(reasons)
                return loss
        raise ValueError(", and ".join(reasons))

    def _observe(self, batch: Any) -> Pass:
        """Run the model on a batch and record its calls. A batch without labels may be passed to the model directly."""
        value: Tensor | None = None
        failure: Exception | None = None
        with self._recorded() as calls, LossWatcher() as watcher:
            try:
                value = self._run(batch)
            except self._failures as error:
                failure = error
        if failure is not None and not calls and len(self._outermost) == 1:
            (model,) = self._outermost
            arguments = {} if has_labels(model, batch) else inputs_without_labels(model, batch)
            if arguments:
                with self._recorded() as calls:
                    model(**arguments)
        return Pass(value, failure, calls, watcher)

    def _lacks_labels(self, batch: Any, failure: Exception | None) -> bool:
        """Return whether a batch has no labels. If this is not known, a failed lookup counts as missing labels."""
        labeled = [has_labels(model, batch) for model in self._outermost]
        is_lookup = failure is not None and isinstance(failure.__cause__ or failure, LOOKUP_ERRORS)
        return not any(labeled) and (is_lookup or None not in labeled)

    @contextmanager
    def _recorded(self) -> Iterator[Recorded]:
        """Record the calls of the outermost models that hold the encoder, or else those of the encoder itself."""
        found: Recorded = []
        paths: dict[PreTrainedModel, str | None] = {**self._outermost}
        for owner in self._encoder.owners:
            paths.setdefault(owner, None)
        with ExitStack() as stack:
            lists = {model: stack.enter_context(record_calls(model, path)) for model, path in paths.items()}
            yield found
        calls = [(model, call) for model in lists for call in lists[model] if call.has_gradients()]
        found.extend([(model, call) for model, call in calls if model in self._outermost] or calls)

    def _drawn(self, fisher: Fisher, found: Pass, number: int) -> Tensor:
        """Return the loss without labels, which is summed over the calls of the model."""
        if not found.calls:
            return torch.zeros(())  # A batch that does not run the encoder has no gradient.
        generator = make_generator(self._seed, number)
        if fisher == "outputs":
            terms = [call_direction(model, call, generator) for model, call in found.calls]
        elif any(call.logits() for _, call in found.calls):
            terms = [
                call_likelihood(model, call, found.watcher, generator, self._temperature) for model, call in found.calls
            ]
        else:
            terms = self._seen_losses(found, generator)
        return torch.stack(terms).sum()

    def _seen_losses(self, found: Pass, generator: torch.Generator) -> list[Tensor]:
        """Return the losses of drawn labels for the outputs of a head outside of the transformers model."""
        model, call = found.calls[0]
        seen = [each for each in found.watcher.seen if each.name in LIKELIHOODS]
        if not seen:
            raise UnavailableError(
                f"there are no predictions: {type(model).__name__} returned no logits by name, and no known loss "
                "function was applied to the outputs of another head (fisher='outputs' uses the last hidden states)"
            )
        return [seen_likelihood(each, generator, self._temperature) / len(call.hidden[-1]) for each in seen]
