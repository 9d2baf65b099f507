"""The base class of modules that classify texts or tokens: labels, class names and evaluation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import PretrainedConfig

from pgb_lightning.glue_tasks import differ_only_in_order, normalize_class_name
from pgb_lightning.heads import class_names, stored_class
from pgb_lightning.modules.finetuning import FineTuning

Batch = dict[str, Tensor]


class Classification(FineTuning):
    """Train and evaluate a transformers model whose head has one output per label.

    Subclasses set ``head``, decide on ``num_labels`` and ``problem_type`` in :meth:`_decide_labels`, and provide the
    metrics and the predictions.
    """

    #: Suffix of the names of the transformers classes with this head.
    head: ClassVar[str]
    num_labels: int
    problem_type: str

    def __init__(self) -> None:
        super().__init__()
        self._metrics: list[Metric | MetricCollection] = []

    # ---- defined by subclasses ------------------------------------------------------------------------------

    @abstractmethod
    def _decide_labels(self, fine_tuned: PretrainedConfig | None, name: str) -> None:
        """Set ``num_labels`` and ``problem_type``.

        Args:
            fine_tuned: The configuration, if that model has a head of this kind.
            name: The name of the model, for messages.
        """

    @abstractmethod
    def _make_metrics(self) -> Metric | MetricCollection:
        """Create metrics that take predictions and labels, and return scores by name."""

    @abstractmethod
    def _predictions(self, logits: Tensor) -> Tensor:
        """Return the predictions that metrics compare with labels."""

    def _count_scored(self, labels: Tensor) -> int:
        """Return the number of predictions over which the loss is averaged."""
        return len(labels)

    def _prefix(self, stage: str, loader: int) -> str:
        """Return the prefix of the names of a loader's scores."""
        return stage if loader == 0 else f"{stage}_{loader}"

    # ---- head -----------------------------------------------------------------------------------------------

    def _adapt_config(self, config: PretrainedConfig, name: str, read_weights: bool) -> None:
        has_head = self.head in stored_class(config)
        self._decide_labels(config if has_head else None, name)
        if read_weights and has_head and config.num_labels != self.num_labels:
            raise MisconfigurationException(
                f"model_name_or_path={name!r} has a head for {config.num_labels} labels, but this module has "
                f"{self.num_labels}. {self._remedy()}, or pass an encoder without a head."
            )
        config.num_labels = self.num_labels

    def _check_head(self, checkpoint: dict[str, Any], path: str) -> None:
        weights = checkpoint["state_dict"]
        # The last layer of the head is the last weight of a model with such a head.
        head = [key for key in self.state_dict() if key.endswith("weight")][-1]
        if head in weights and len(weights[head]) != self.num_labels:
            raise MisconfigurationException(
                f"fine_tuned_ckpt={path!r} has a head for {len(weights[head])} labels, but this module "
                f"has {self.num_labels}. Fine-tune on the same task. {self._remedy()}."
            )

    def _remedy(self) -> str:
        """Return how to change the number of labels, for messages."""
        return "Set num_labels to match"

    # ---- data -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that data and model have the same labels, and adopt the class names of the training data.

        Raises:
            MisconfigurationException: If the data has another number or another kind of labels, or does not fit the
                model for another reason.
        """
        super().setup(stage)
        data = self._active_datamodule()
        problem = getattr(data, "problem_type", None)
        if problem not in (None, self.problem_type):
            raise MisconfigurationException(
                f"The data has problem_type={problem!r}, but {type(self).__name__} has {self.problem_type!r}. Use a "
                "module and data for the same kind of labels."
            )
        num_labels = getattr(data, "num_labels", self.num_labels)
        if num_labels != self.num_labels:
            raise MisconfigurationException(
                f"The data has num_labels={num_labels}, but the model has {self.num_labels}. {self._remedy()} the data."
            )
        names = self._names_in_data()
        if names:
            self._adopt_class_names(names, stage)

    def _names_in_data(self) -> list[str]:
        """Return the class names of the data; empty if it has none, or another number of them."""
        names = getattr(self._active_datamodule(), "label_names", ())
        is_list = isinstance(names, (list, tuple)) and len(names) == self.num_labels
        return [str(name) for name in names] if is_list else []

    def _adopt_class_names(self, names: Sequence[str], stage: str) -> None:
        """In a fit, adopt the data's class names unless the model has its own. Warn if the names differ."""
        own = class_names(self.model.config)
        if own and list(map(normalize_class_name, own)) != list(map(normalize_class_name, names)):
            rank_zero_warn(
                f"The classes of the model are {', '.join(own)}, and those of the data {', '.join(names)}. "
                "If they are not the same in this order, pass a model (or ckpt_path) that was fine-tuned on such data."
            )
        if stage == "fit" and (not own or differ_only_in_order(own, names)):
            self.model.config.id2label = dict(enumerate(names))
            self.model.config.label2id = {name: number for number, name in enumerate(names)}
            self._store_config()

    # ---- steps ----------------------------------------------------------------------------------------------

    def forward(self, **inputs: Tensor) -> Any:
        """Run the transformers model."""
        return self.model(**inputs)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self._metrics = []

    def on_test_epoch_start(self) -> None:
        """Reset the metrics."""
        self._metrics = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        """Log the loss, update the metrics of the loader, and return what :meth:`predict_step` returns."""
        return self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        """Log the loss, update the metrics of the loader, and return what :meth:`predict_step` returns."""
        return self._evaluate("test", batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        """Return ``logits`` and ``predictions``."""
        logits = self(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return self._outputs(logits, self._predictions(logits), batch)

    def _outputs(self, logits: Tensor, predictions: Tensor, batch: Batch) -> Batch:
        return {"logits": logits, "predictions": predictions}

    def _evaluate(self, stage: str, batch: Batch, loader: int) -> Batch:
        output = self(**batch)
        # One collection per loader, because MNLI has two validation sets.
        while len(self._metrics) <= loader:
            self._metrics.append(self._make_metrics().to(self.device))
        predictions = self._predictions(output.logits)
        self._metrics[loader].update(predictions, batch["labels"])
        count = self._count_scored(batch["labels"])
        if output.loss is not None:  # exported models have none
            # The mean of nothing is NaN. It is logged with weight 0, since all processes must log the same names.
            self.log(
                f"{self._prefix(stage, loader)}_loss",
                output.loss if count else torch.zeros_like(output.loss),
                batch_size=count,
                prog_bar=True,
                sync_dist=True,
                add_dataloader_idx=False,
            )
        return self._outputs(output.logits, predictions, batch)

    def _log_metrics(self, stage: str) -> None:
        for loader, metrics in enumerate(self._metrics):
            prefix = self._prefix(stage, loader)
            values = {f"{prefix}_{name}": value for name, value in metrics.compute().items()}
            self.log_dict(values, prog_bar=True, sync_dist=True)
