"""Fine-tune a transformers encoder to classify texts or to score them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


class TextClassification(FineTuning):
    """A transformers model for sequence classification with its loss, metrics and optimizer.

    The transformers model is `self.model`. It logs `train_loss`, `val_loss` and one `val_<metric>` for each
    of the task's metrics (`test_...` in testing); the second loader of MNLI logs `val_mismatched_...`.

    A checkpoint holds the model's configuration, so that loading it reads neither the Hub nor the folder that
    the weights first came from; it also rebuilds a pruned model.

    Args:
        model_name_or_path: The pretrained encoder: a Hub name, a local folder, or "minilm-l6".
        task: A GLUE task, which sets the number of labels and the metrics.
        num_labels: Number of classes, or 1 for regression, where there is no `task`; 2 by default.
        learning_rate: Peak of AdamW's learning rate.
        weight_decay: For weight matrices; biases and LayerNorms have none.
        warmup_ratio: Share of the steps over which the learning rate rises, before it falls linearly to zero.
        fine_tuned_ckpt: Lightning checkpoint of this module to take the weights from, for example what
            fine-tuning left for pruning to start from. Needed once: the module's own checkpoints do not
            refer to it.
        hf_config: Configuration to build the model from, with no pretrained weights. Checkpoints fill it in.

    Raises:
        MisconfigurationException: If a setting is out of range, or `fine_tuned_ckpt` is missing or belongs to
            another model.

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
        fine_tuned_ckpt: str | None = None,
        hf_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["fine_tuned_ckpt"])
        self.task = _find_task(task)
        self.num_labels = _count_labels(self.task, num_labels)
        self._metrics: list[MetricCollection] = []
        self._set_up(model_name_or_path, learning_rate, weight_decay, warmup_ratio, fine_tuned_ckpt, hf_config)

    def _adapt(self, config: PretrainedConfig, name: str, read_weights: bool) -> None:
        stored = getattr(config, "architectures", None) or [""]
        if read_weights and "ForSequenceClassification" in stored[0] and config.num_labels != self.num_labels:
            raise MisconfigurationException(
                f"model_name_or_path={name!r} has a head for {config.num_labels} labels, this module one for "
                f"{self.num_labels}; set task or num_labels to match, or give an encoder without a head."
            )
        config.num_labels = self.num_labels
        config.problem_type = "regression" if self.num_labels == 1 else "single_label_classification"

    def _check_head(self, weights: dict[str, torch.Tensor], path: str) -> None:
        # The head's last layer is the last weight that a model for sequence classification defines.
        head = [key for key in self.state_dict() if key.endswith("weight")][-1]
        if head in weights and len(weights[head]) != self.num_labels:
            raise MisconfigurationException(
                f"fine_tuned_ckpt={path!r} has a head for {len(weights[head])} labels, this module one "
                f"for {self.num_labels}; fine-tune on the same task, or set task or num_labels to match."
            )

    # ---- steps --------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data are of the model's task; call the classes what the training data calls them."""
        super().setup(stage)
        data = self._datamodule()
        served = getattr(data, "num_labels", self.num_labels)
        if served != self.num_labels:
            raise MisconfigurationException(
                f"The data has num_labels={served}, the model has {self.num_labels}; set the model's task or "
                "num_labels to match the data (1 means regression)."
            )
        task = getattr(data, "task", None)
        if self.task is not None and isinstance(task, GLUETask) and task.name != self.task.name:
            raise MisconfigurationException(
                f"The data are of task={task.name!r}, the model is for {self.task.name!r}; give a model (or ckpt_path) "
                "and data of the same task."
            )
        self._compare_names(getattr(data, "label_names", ()), stage)

    def _compare_names(self, names: Sequence[str], stage: str) -> None:
        """Name classes as the data do when training, unless they have other names; say where names do not agree."""
        if not isinstance(names, (list, tuple)) or len(names) != self.num_labels:
            return
        own = [str(name) for _, name in sorted((self.model.config.id2label or {}).items())]
        if not _are_numbers(own) and list(map(normalize_class_name, own)) != list(map(normalize_class_name, names)):
            rank_zero_warn(
                f"The model calls its classes {', '.join(own)}, the data {', '.join(map(str, names))}; if these "
                "are not the same in this order, give a model (or ckpt_path) that was fine-tuned on such data."
            )
        if stage == "fit" and (_are_numbers(own) or differ_only_in_order(own, names)):
            self.model.config.id2label = dict(enumerate(names))
            self.model.config.label2id = {name: number for number, name in enumerate(names)}
            self._remember_config()

    def forward(self, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        """Run the transformers model."""
        output: SequenceClassifierOutput = self.model(**inputs)
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Compute the loss of a batch that has `labels`."""
        loss = self(**batch).loss
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss  # type: ignore[no-any-return]

    def on_validation_epoch_start(self) -> None:
        """Forget the metrics of the epoch before."""
        self._metrics = []

    def on_test_epoch_start(self) -> None:
        """Forget the metrics of the epoch before."""
        self._metrics = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss and update the loader's metrics."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss and update the loader's metrics."""
        self._evaluate("test", batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        """Give `logits` and `predictions`: a class each, or a number each in regression."""
        logits = self(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return {"logits": logits, "predictions": self._predictions(logits)}

    def _predictions(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.squeeze(-1).float() if self.num_labels == 1 else logits.argmax(-1)

    def _evaluate(self, stage: str, batch: Batch, loader: int) -> None:
        output = self(**batch)
        # One collection a loader, so that MNLI's two sets do not mix.
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


def _are_numbers(names: Sequence[str]) -> bool:
    """Tell the names that transformers makes up from given ones."""
    return all(name == f"LABEL_{number}" for number, name in enumerate(names))


def _count_labels(task: GLUETask | None, num_labels: int | None) -> int:
    if num_labels is not None and num_labels < 1:
        raise MisconfigurationException(
            f"num_labels={num_labels} is out of range: give the number of classes, or 1 for regression."
        )
    if task is None:
        return 2 if num_labels is None else num_labels
    if num_labels not in (None, task.num_labels):
        raise MisconfigurationException(
            f"num_labels={num_labels} contradicts task={task.name!r}, which has {task.num_labels}; leave "
            "num_labels out."
        )
    return task.num_labels
