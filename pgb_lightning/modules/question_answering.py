"""Fine-tune a transformers encoder for extractive question answering."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PretrainedConfig
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.modules.spans import best_spans
from pgb_lightning.modules.squad_metrics import SquadMetric

Batch = dict[str, Tensor]

#: Keys of evaluation batches that are not inputs of the model.
EVALUATION_KEYS = ("context_offsets", "question", "window")


class QuestionAnswering(FineTuning):
    """A transformers model with a span head, its loss, metrics and optimizer.

    The transformers model is ``self.model``. In evaluation, the answer to a question is the best span of its best
    window. The module logs ``val_exact_match`` and ``val_f1`` in percent (``test_...`` in testing). For SQuAD 2.0 it
    also logs the scores of questions with and without an answer, and the best scores over all thresholds. The threshold
    with the best F1 is stored, also in checkpoints, and used in prediction.

    Args:
        model_name_or_path: The pretrained encoder: a Hub name, a local folder, or ``"minilm-l6"``.
        version: ``"1.1"``, or ``"2.0"``, in which questions may have no answer.
        n_best: Number of starts and of ends to combine in a window.
        max_answer_length: Maximum length of an answer in tokens.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices. Biases and LayerNorms are not decayed.
        warmup_ratio: Fraction of the steps in which the learning rate rises, before it decays linearly to zero.
        embedding_learning_rate: Peak learning rate of the embeddings, which pruning does not touch; by default that of
            all other parameters. 0 freezes them, and no gradient is computed for them.
        fine_tuned_ckpt: Lightning checkpoint of this module with the initial weights. It is needed only once:
            checkpoints of this module do not refer to it.
        hf_config: Configuration to create the model from without pretrained weights. Checkpoints set it.

    Raises:
        MisconfigurationException: If a setting is out of range, or ``fine_tuned_ckpt`` does not exist or is of another
            model.

    Example:
        >>> module = QuestionAnswering("bert-base-uncased", version="2.0")  # doctest: +SKIP
    """

    auto_model = AutoModelForQuestionAnswering
    null_threshold: Tensor

    def __init__(
        self,
        model_name_or_path: str,
        version: Literal["1.1", "2.0"] = "1.1",
        n_best: int = 20,
        max_answer_length: int = 30,
        learning_rate: float = 3e-5,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        embedding_learning_rate: float | None = None,
        fine_tuned_ckpt: str | None = None,
        hf_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["fine_tuned_ckpt"])
        if version not in ("1.1", "2.0"):
            raise MisconfigurationException(f"version={version!r} is not a version of SQuAD. Use '1.1' or '2.0'.")
        for name, value in {"n_best": n_best, "max_answer_length": max_answer_length}.items():
            if value < 1:
                raise MisconfigurationException(f"{name}={value} is out of range. Use 1 or more.")
        self.version = version
        self.n_best = n_best
        self.max_answer_length = max_answer_length
        self.register_buffer("null_threshold", torch.zeros((), dtype=torch.float32))
        self._metric: SquadMetric | None = None
        self._set_rates(learning_rate, weight_decay, warmup_ratio, embedding_learning_rate)
        self._set_model(model_name_or_path, fine_tuned_ckpt, hf_config)

    def _adapt_config(self, config: PretrainedConfig, name: str, read_weights: bool) -> None:
        # For encoders without a head, the default of transformers is two labels, here the start and the end of a span.
        if config.num_labels != 2:
            stored = (getattr(config, "architectures", None) or [""])[0]
            if read_weights and "ForQuestionAnswering" in stored:
                raise MisconfigurationException(
                    f"model_name_or_path={name!r} has a head with {config.num_labels} outputs instead of 2, the start "
                    "and the end of a span. Pass a model for question answering, or an encoder without a head."
                )
            config.num_labels = 2
        config.problem_type = None  # that of a classifier, whose head is replaced

    # ---- steps ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that data and model have the same version, and that the tokenizer fits the model."""
        super().setup(stage)
        version = getattr(self._active_datamodule(), "version", self.version)
        if version != self.version:
            raise MisconfigurationException(
                f"The data has version={version!r} of SQuAD, but the model has {self.version!r}. Set the same version."
            )

    def forward(self, **inputs: Tensor) -> QuestionAnsweringModelOutput:
        """Run the transformers model."""
        output: QuestionAnsweringModelOutput = self.model(**inputs)
        return output

    def on_validation_epoch_start(self) -> None:
        """Start collecting windows."""
        self._metric = self._new_metric()

    def on_test_epoch_start(self) -> None:
        """Start collecting windows."""
        self._metric = self._new_metric()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the best spans of a batch of windows."""
        assert self._metric is not None
        self._metric.update(self._score_windows(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the best spans of a batch of windows."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the scores, and store the best threshold."""
        scores = self._log_scores("val")
        if "best_f1_thresh" in scores and not self.trainer.sanity_checking:
            self.null_threshold.fill_(float(scores["best_f1_thresh"]))

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return rows of (question, window, score, score of "no answer", begin, end)."""
        return self._score_windows(batch)

    def _score_windows(self, batch: Batch) -> Tensor:
        output = self(**{name: value for name, value in batch.items() if name not in EVALUATION_KEYS})
        score, span, null = best_spans(
            output.start_logits, output.end_logits, batch["context_offsets"], self.n_best, self.max_answer_length
        )
        # Integers below 2^24, such as question, window and character numbers, are exact in single precision.
        numbers = torch.stack([batch["question"], batch["window"]], 1)
        return torch.cat([numbers.to(score), torch.stack([score, null], 1), span.to(score)], 1)

    def _new_metric(self) -> SquadMetric:
        examples = getattr(getattr(self.trainer, "datamodule", None), "examples", None)
        if examples is None:
            raise MisconfigurationException(
                "QuestionAnswering compares texts, so it needs a data module with a method examples(split) that "
                "returns contexts and answers, such as SQuADDataModule. Data loaders are not enough."
            )
        threshold = float(self.null_threshold) if self.version == "2.0" else None
        return SquadMetric(examples("validation"), threshold).to(self.device)

    def _log_scores(self, stage: str) -> dict[str, Tensor]:
        assert self._metric is not None
        scores: dict[str, Tensor] = self._metric.compute()
        # On the module's device, where processes can sum them.
        shown = {f"{stage}_{name}": value.float().to(self.device) for name, value in scores.items()}
        self.log_dict(shown, prog_bar=True, sync_dist=True)
        self._metric = None
        return scores
