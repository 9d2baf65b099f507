"""Fine-tune a transformers encoder for text classification or regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification, PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from pgb_lightning.glue_tasks import GLUETask, differ_only_in_order, get_task, normalize_class_name
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.modules.metrics import make_metrics

Batch = dict[str, torch.Tensor]
ProblemType = Literal["regression", "single_label_classification"]


class TextClassification(FineTuning):
    """A transformers model for sequence classification with its loss, metrics and optimizer.

    The transformers model is ``self.model``. The module logs ``train_loss``, ``val_loss`` and ``val_<metric>`` for each
    metric of the task (``test_...`` in testing). The second loader of MNLI logs ``val_mismatched_...``.

    Checkpoints contain the model's configuration. Loading one needs neither the Hub nor the folder of the pretrained
    weights, and rebuilds a pruned model.

    Args:
        model_name_or_path: The pretrained encoder: a Hub name, a local folder, or ``"minilm-l6"``.
        task: A GLUE task, which determines the number of labels and the metrics.
        num_labels: Number of classes, or 1 for regression, if there is no ``task``. The default is 2.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices. Biases and LayerNorms are not decayed.
        warmup_ratio: Fraction of the steps in which the learning rate rises, before it decays linearly to zero.
        embedding_learning_rate: Peak learning rate of the embeddings, which pruning does not touch; by default that of
            all other parameters. 0 freezes them, and no gradient is computed for them.
        fine_tuned_ckpt: Lightning checkpoint of this module with the initial weights, for example the fine-tuned model
            to prune. It is needed only once: checkpoints of this module do not refer to it.
        hf_config: Configuration to create the model from without pretrained weights. Checkpoints set it.

    Raises:
        MisconfigurationException: If a setting is out of range, the model's configuration has another ``problem_type``,
            such as several labels for each text, or ``fine_tuned_ckpt`` does not exist or is of another model.

    Example:
        >>> module = TextClassification("bert-base-uncased", task="sst2")  # doctest: +SKIP
    """

    auto_model = AutoModelForSequenceClassification

    def __init__(
        self,
        model_name_or_path: str,
        task: str | None = None,
        num_labels: int | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        embedding_learning_rate: float | None = None,
        fine_tuned_ckpt: str | None = None,
        hf_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["fine_tuned_ckpt"])
        self.task = _find_task(task)
        self.num_labels = _count_labels(self.task, num_labels)
        self._metrics: list[MetricCollection] = []
        self._set_up(
            model_name_or_path,
            learning_rate,
            weight_decay,
            warmup_ratio,
            embedding_learning_rate,
            fine_tuned_ckpt,
            hf_config,
        )

    def _adapt_config(self, config: PretrainedConfig, name: str, read_weights: bool) -> None:
        stored = (getattr(config, "architectures", None) or [""])[0]
        keeps_head = read_weights and "ForSequenceClassification" in stored
        if keeps_head and config.num_labels != self.num_labels:
            raise MisconfigurationException(
                f"model_name_or_path={name!r} has a head for {config.num_labels} labels, but this module has "
                f"{self.num_labels}. Set task or num_labels to match, or pass an encoder without a head."
            )
        problem: ProblemType = "regression" if self.num_labels == 1 else "single_label_classification"
        # That of an encoder, whose head is replaced, does not matter. A configuration without a class is the user's.
        if (keeps_head or not stored) and config.problem_type not in (None, problem):
            raise MisconfigurationException(
                f"model_name_or_path={name!r} has problem_type={config.problem_type!r}, but TextClassification with "
                f"num_labels={self.num_labels} is {problem!r}. It trains one label for each text, or one number with "
                "num_labels=1. Use a LightningModule of your own with PGBCallback for another loss."
            )
        config.num_labels = self.num_labels
        config.problem_type = problem

    def _check_head(self, weights: dict[str, torch.Tensor], path: str) -> None:
        # The last layer of the head is the last weight of a model for sequence classification.
        head = [key for key in self.state_dict() if key.endswith("weight")][-1]
        if head in weights and len(weights[head]) != self.num_labels:
            raise MisconfigurationException(
                f"fine_tuned_ckpt={path!r} has a head for {len(weights[head])} labels, but this module "
                f"has {self.num_labels}. Fine-tune on the same task, or set task or num_labels to match."
            )

    # ---- steps ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that data and model have the same task, and adopt the class names of the training data."""
        super().setup(stage)
        data = self._active_datamodule()
        num_labels = getattr(data, "num_labels", self.num_labels)
        if num_labels != self.num_labels:
            raise MisconfigurationException(
                f"The data has num_labels={num_labels}, but the model has {self.num_labels}. Set the model's task or "
                "num_labels to match the data (1 means regression)."
            )
        task = getattr(data, "task", None)
        if self.task is not None and isinstance(task, GLUETask) and task.name != self.task.name:
            raise MisconfigurationException(
                f"The data has task={task.name!r}, but the model has {self.task.name!r}. Pass a model (or ckpt_path) "
                "and data of the same task."
            )
        self._adopt_class_names(getattr(data, "label_names", ()), stage)

    def _adopt_class_names(self, names: Sequence[str], stage: str) -> None:
        """Adopt the data's class names in a fit, unless the model has other ones. Warn if the names differ."""
        if not isinstance(names, (list, tuple)) or len(names) != self.num_labels:
            return
        own = [str(name) for _, name in sorted((self.model.config.id2label or {}).items())]
        if not _are_default_names(own) and list(map(normalize_class_name, own)) != list(
            map(normalize_class_name, names)
        ):
            rank_zero_warn(
                f"The classes of the model are {', '.join(own)}, and those of the data {', '.join(map(str, names))}. "
                "If they are not the same in this order, pass a model (or ckpt_path) that was fine-tuned on such data."
            )
        if stage == "fit" and (_are_default_names(own) or differ_only_in_order(own, names)):
            self.model.config.id2label = dict(enumerate(names))
            self.model.config.label2id = {name: number for number, name in enumerate(names)}
            self._store_config()

    def forward(self, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        """Run the transformers model."""
        output: SequenceClassifierOutput = self.model(**inputs)
        return output

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self._metrics = []

    def on_test_epoch_start(self) -> None:
        """Reset the metrics."""
        self._metrics = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss and update the metrics of the loader."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss and update the metrics of the loader."""
        self._evaluate("test", batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        """Return ``logits`` and ``predictions``, which are classes, or numbers in regression."""
        logits = self(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return {"logits": logits, "predictions": self._predictions(logits)}

    def _predictions(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.squeeze(-1).float() if self.num_labels == 1 else logits.argmax(-1)

    def _evaluate(self, stage: str, batch: Batch, loader: int) -> None:
        output = self(**batch)
        # One collection per loader, because MNLI has two validation sets.
        while len(self._metrics) <= loader:
            self._metrics.append(make_metrics(self.task, self.num_labels).to(self.device))
        self._metrics[loader].update(self._predictions(output.logits), batch["labels"])
        self.log(
            f"{self._prefix(stage, loader)}_loss",
            output.loss,
            batch_size=len(batch["labels"]),
            prog_bar=True,
            sync_dist=True,
            add_dataloader_idx=False,
        )

    def _log_metrics(self, stage: str) -> None:
        for loader, metrics in enumerate(self._metrics):
            prefix = self._prefix(stage, loader)
            values = {f"{prefix}_{name}": value for name, value in metrics.compute().items()}
            self.log_dict(values, prog_bar=True, sync_dist=True)

    def _prefix(self, stage: str, loader: int) -> str:
        if loader == 0:
            return stage
        splits = self.task.validation_splits if self.task else ()
        name = splits[loader].removeprefix("validation_") if loader < len(splits) else str(loader)
        return f"{stage}_{name}"


def _find_task(name: str | None) -> GLUETask | None:
    try:
        return None if name is None else get_task(name)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from None


def _are_default_names(names: Sequence[str]) -> bool:
    """Return whether names are those that transformers assigns by default."""
    return all(name == f"LABEL_{number}" for number, name in enumerate(names))


def _count_labels(task: GLUETask | None, num_labels: int | None) -> int:
    if num_labels is not None and num_labels < 1:
        raise MisconfigurationException(
            f"num_labels={num_labels} is out of range. Use the number of classes, or 1 for regression."
        )
    if task is None:
        return 2 if num_labels is None else num_labels
    if num_labels not in (None, task.num_labels):
        raise MisconfigurationException(
            f"num_labels={num_labels} contradicts task={task.name!r}, which has {task.num_labels}. Omit num_labels."
        )
    return task.num_labels
