"""Fine-tune a transformers encoder for the classification of tokens, such as named entity recognition."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModelForTokenClassification, PretrainedConfig

from pgb_lightning.heads import class_names
from pgb_lightning.label_kind import IGNORED
from pgb_lightning.modules.classification import Batch, Classification
from pgb_lightning.modules.entity_metrics import EntityMetric, are_entity_tags


class TokenClassification(Classification):
    """A transformers model for token classification with its loss, metrics and optimizer.

    The transformers model is ``self.model``. Batches have ``labels`` (batch, length), with -100 where a token is not
    scored: special tokens, padding, and usually all pieces of a word but the first.

    The module logs ``train_loss``, ``val_loss``, ``val_f1``, ``val_precision``, ``val_recall`` and ``val_accuracy``
    (``test_...`` in testing). F1, precision and recall are those of whole entities, as in the CoNLL script; accuracy is
    that of scored tokens. This requires class names that are tags, such as ``B-PER``, ``I-PER`` and ``O``, in the model
    or the data (``label_names``). With other class names, such as parts of speech, only ``val_accuracy`` and
    ``val_f1_macro``, the mean F1 of the classes, are logged.

    Checkpoints contain the model's configuration. Loading one needs neither the Hub nor the folder of the pretrained
    weights, and rebuilds a pruned model.

    Args:
        model_name_or_path: The pretrained encoder, or a model with a head that was fine-tuned for token classification:
            a Hub name, a local folder, or ``"minilm-l6"``.
        num_labels: Number of classes, for an encoder without a head. The default is that of a fine-tuned model.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices. Biases and LayerNorms are not decayed.
        warmup_ratio: Fraction of the steps in which the learning rate rises, before it decays linearly to zero.
        embedding_learning_rate: Peak learning rate of the embeddings, which pruning does not touch; by default that of
            all other parameters. 0 freezes them, and no gradient is computed for them.
        fine_tuned_ckpt: Lightning checkpoint of this module with the initial weights, for example the fine-tuned model
            to prune. It is needed only once: checkpoints of this module do not refer to it.
        hf_config: Configuration to create the model from without pretrained weights. Checkpoints set it.

    Raises:
        MisconfigurationException: If a setting is out of range, ``num_labels`` is missing or not that of the model's
            head, or ``fine_tuned_ckpt`` does not exist or is of another model.

    Example:
        >>> module = TokenClassification("bert-base-cased", num_labels=9)  # doctest: +SKIP
    """

    auto_model = AutoModelForTokenClassification
    head: ClassVar[str] = "ForTokenClassification"
    problem_type = "token_classification"

    def __init__(
        self,
        model_name_or_path: str,
        num_labels: int | None = None,
        learning_rate: float = 3e-5,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        embedding_learning_rate: float | None = None,
        fine_tuned_ckpt: str | None = None,
        hf_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["fine_tuned_ckpt"])
        if num_labels is not None and num_labels < 2:
            raise MisconfigurationException(f"num_labels={num_labels} is out of range. Use 2 or more.")
        self._given = num_labels
        self._set_rates(learning_rate, weight_decay, warmup_ratio, embedding_learning_rate)
        self._set_model(model_name_or_path, fine_tuned_ckpt, hf_config)

    def _decide_labels(self, fine_tuned: PretrainedConfig | None, name: str) -> None:
        num_labels = self._given or (None if fine_tuned is None else fine_tuned.num_labels)
        if num_labels is None:
            raise MisconfigurationException(
                f"num_labels=None, but model_name_or_path={name!r} has no head for token classification. Set "
                "num_labels to the number of classes of the data."
            )
        self.num_labels = self.hparams["num_labels"] = num_labels

    def _adapt_config(self, config: PretrainedConfig, name: str, read_weights: bool) -> None:
        super()._adapt_config(config, name, read_weights)
        config.problem_type = None  # that of a classifier of texts, whose head is replaced

    # ---- steps ----------------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        """Return ``logits`` and ``predictions``, the class of each token, or -100 for padding."""
        return super().predict_step(batch, batch_idx, dataloader_idx)

    def _outputs(self, logits: Tensor, predictions: Tensor, batch: Batch) -> Batch:
        mask = batch.get("attention_mask")
        if mask is not None:
            predictions = predictions.masked_fill(mask == 0, IGNORED)
        return super()._outputs(logits, predictions, batch)

    def _make_metrics(self) -> Metric | MetricCollection:
        names = list(class_names(self.model.config)) or self._names_in_data()
        if are_entity_tags(names):
            return EntityMetric(names)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.num_labels, average="micro", ignore_index=IGNORED),
                "f1_macro": MulticlassF1Score(self.num_labels, average="macro", ignore_index=IGNORED),
            }
        )

    def _predictions(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def _count_scored(self, labels: Tensor) -> int:
        return int((labels != IGNORED).sum())
