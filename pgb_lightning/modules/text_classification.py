"""Fine-tune a transformers encoder for text classification or regression."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from pgb_lightning.glue_tasks import GLUETask, get_task
from pgb_lightning.heads import TextProblem, stored_class
from pgb_lightning.modules.classification import Batch, Classification
from pgb_lightning.modules.metrics import make_metrics
from pgb_lightning.modules.problem_type import check_given, check_stored, resolve
from pgb_lightning.modules.sentence_files import read_cross_encoder


class TextClassification(Classification):
    """A transformers model for sequence classification with its loss, metrics and optimizer.

    The transformers model is ``self.model``. The module logs ``train_loss``, ``val_loss`` and ``val_<metric>`` for each
    metric of the task (``test_...`` in testing). The second loader of MNLI logs ``val_mismatched_...``.

    Depending on ``problem_type``, a text has one class, with ``labels`` of class numbers (batch); multiple labels, with
    ``labels`` of floats 0 and 1 (batch, num_labels); or a number, with ``labels`` of floats (batch). Without a
    ``task``, the metrics are ``accuracy``; ``f1_micro`` and ``f1_macro`` over the labels; or ``spearman`` and
    ``pearson``, respectively. A reranker with one output is trained by regression.

    Checkpoints contain the model's configuration. Loading one needs neither the Hub nor the folder of the pretrained
    weights, and rebuilds a pruned model.

    Args:
        model_name_or_path: The pretrained encoder, or a model with a head that was fine-tuned for sequence
            classification: a Hub name, a local folder, or ``"minilm-l6"``.
        task: A GLUE task, which determines the number of labels and the metrics.
        num_labels: Number of classes, or 1 for regression, if there is no ``task``. The default is that of the
            fine-tuned model, or 2 without one.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices. Biases and LayerNorms are not decayed.
        warmup_ratio: Fraction of the steps in which the learning rate rises, before it decays linearly to zero.
        embedding_learning_rate: Peak learning rate of the embeddings, which pruning does not touch; by default that of
            all other parameters. 0 freezes them, and no gradient is computed for them.
        fine_tuned_ckpt: Lightning checkpoint of this module with the initial weights, for example the fine-tuned model
            to prune. It is needed only once: checkpoints of this module do not refer to it.
        hf_config: Configuration to create the model from without pretrained weights. Checkpoints set it.
        problem_type: ``"single_label_classification"``, ``"multi_label_classification"`` or ``"regression"``. The
            default is that of the fine-tuned model if ``num_labels`` is not given either, else regression for one label
            and single-label classification for several.
        threshold: Probability above which a label is predicted in multi-label classification.

    Raises:
        MisconfigurationException: If a setting is out of range, two settings contradict each other, the model's head is
            for other labels, or ``fine_tuned_ckpt`` does not exist or is of another model.

    Example:
        >>> module = TextClassification("bert-base-uncased", task="sst2")  # doctest: +SKIP
        >>> tagger = TextClassification(  # doctest: +SKIP
        ...     "bert-base-uncased", num_labels=28, problem_type="multi_label_classification"
        ... )
    """

    auto_model = AutoModelForSequenceClassification
    head: ClassVar[str] = "ForSequenceClassification"
    problem_type: TextProblem

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
        problem_type: TextProblem | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["fine_tuned_ckpt"])
        self.task = _find_task(task)
        check_given(self.task, num_labels, problem_type)
        if not 0 < threshold < 1:
            raise MisconfigurationException(
                f"threshold={threshold} is out of range. Use a probability between 0 and 1."
            )
        self.threshold = threshold
        self._given = num_labels, problem_type
        self._set_rates(learning_rate, weight_decay, warmup_ratio, embedding_learning_rate)
        self._set_model(model_name_or_path, fine_tuned_ckpt, hf_config)

    # ---- head -----------------------------------------------------------------------------------------------

    def _decide_labels(self, fine_tuned: PretrainedConfig | None, name: str) -> None:
        self.num_labels, self.problem_type = resolve(self.task, *self._given, fine_tuned, name)
        if self.threshold != 0.5 and not self._is_multi_label:
            raise MisconfigurationException(
                f"threshold={self.threshold} has no effect with problem_type={self.problem_type!r}. Omit it, or set "
                "problem_type='multi_label_classification'."
            )
        if self.task is None:  # checkpoints do not depend on what the model was fine-tuned for
            self.hparams.update(num_labels=self.num_labels, problem_type=self.problem_type)

    def _adapt_config(self, config: PretrainedConfig, name: str, read_weights: bool) -> None:
        super()._adapt_config(config, name, read_weights)
        stored = stored_class(config)
        # That of an encoder, whose head is replaced, does not matter. A configuration without a class is the user's.
        if not stored or (read_weights and self.head in stored):
            check_stored(config.problem_type, self.num_labels, self.problem_type, f"model_name_or_path={name!r}")
        config.problem_type = self.problem_type

    def _read_companion_files(self, name: str) -> dict[str, Any]:
        return read_cross_encoder(name)

    def _check_head(self, checkpoint: dict[str, Any], path: str) -> None:
        super()._check_head(checkpoint, path)
        stored = checkpoint.get("hyper_parameters", {}).get("hf_config") or {}
        check_stored(stored.get("problem_type"), self.num_labels, self.problem_type, f"fine_tuned_ckpt={path!r}")

    def _remedy(self) -> str:
        return "Set task or num_labels to match"

    @property
    def _is_multi_label(self) -> bool:
        return self.problem_type == "multi_label_classification"

    # ---- steps ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that data and model have the same task, and adopt the class names of the training data."""
        super().setup(stage)
        task = getattr(self._active_datamodule(), "task", None)
        if self.task is not None and isinstance(task, GLUETask) and task.name != self.task.name:
            raise MisconfigurationException(
                f"The data has task={task.name!r}, but the model has {self.task.name!r}. Pass a model (or ckpt_path) "
                "and data of the same task."
            )

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        """Return ``logits`` and ``predictions``: classes, 0 or 1 for each of several labels, or numbers."""
        return super().predict_step(batch, batch_idx, dataloader_idx)

    def _make_metrics(self) -> MetricCollection:
        return make_metrics(self.task, self.num_labels, self._is_multi_label)

    def _predictions(self, logits: Tensor) -> Tensor:
        if self._is_multi_label:
            return (logits.float().sigmoid() > self.threshold).long()
        return logits.squeeze(-1).float() if self.num_labels == 1 else logits.argmax(-1)

    def _prefix(self, stage: str, loader: int) -> str:
        splits = self.task.validation_splits if self.task else ()
        if 0 < loader < len(splits):
            return f"{stage}_{splits[loader].removeprefix('validation_')}"
        return super()._prefix(stage, loader)


def _find_task(name: str | None) -> GLUETask | None:
    try:
        return None if name is None else get_task(name)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from None
