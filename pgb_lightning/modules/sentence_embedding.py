"""Embed sentences with a transformers encoder that is pruned without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics.regression import SpearmanCorrCoef
from transformers import AutoModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.modules.pooling import Pooling, PoolingMode, read_pooling, read_settings, write_pooling


class SentenceEmbedding(FineTuning):
    """A transformers encoder with the pooling of a sentence-transformers model, for pruning without fine-tuning.

    It needs no labels and has no loss of its own. Calibration uses the gradients of random directions of the
    embeddings. Re-finetuning matches the hidden states of the dense model on plain sentences, with the callback
    ``Distillation(logits_weight=0)``. Validation on pairs with scores logs ``val_spearman``, the correlation of the
    scores with the cosine similarities.

    Batches of sentences have ``input_ids`` and ``attention_mask``. Batches of pairs have such batches as ``first`` and
    ``second``, and ``labels`` with the scores.

    Args:
        model_name_or_path: The pretrained encoder: a Hub name, a local folder, or ``"minilm-l6"``.
        pooling: ``"mean"``, ``"cls"`` or ``"max"``; by default that of the model's ``modules.json``, else ``"mean"``.
        normalize: Whether embeddings are scaled to length 1; by default as in ``modules.json``, else ``False``.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices. Biases and LayerNorms are not decayed.
        warmup_ratio: Fraction of the steps in which the learning rate rises, before it decays linearly to zero.
        embedding_learning_rate: Peak learning rate of the word embeddings; by default that of all other parameters. 0
            freezes them.
        fine_tuned_ckpt: Lightning checkpoint of this module with the initial weights.
        hf_config: Configuration to create the model from without pretrained weights. Checkpoints set it.

    Raises:
        MisconfigurationException: If a setting is out of range, or the model has parts other than pooling and
            normalization.

    Example:
        >>> module = SentenceEmbedding("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    """

    auto_model = AutoModel

    def __init__(
        self,
        model_name_or_path: str,
        pooling: PoolingMode | None = None,
        normalize: bool | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        embedding_learning_rate: float | None = None,
        fine_tuned_ckpt: str | None = None,
        hf_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["fine_tuned_ckpt"])
        known = pooling is not None and normalize is not None
        stored = None if known else read_pooling(str(model_name_or_path))
        stored = stored or Pooling()
        self.pooling = Pooling(
            mode=stored.mode if pooling is None else pooling,
            normalize=stored.normalize if normalize is None else normalize,
        )
        # So that checkpoints do not depend on the folder of the model.
        self.hparams.update(pooling=self.pooling.mode, normalize=self.pooling.normalize)
        self.spearman = SpearmanCorrCoef()
        self._set_rates(learning_rate, weight_decay, warmup_ratio, embedding_learning_rate)
        self._set_model(model_name_or_path, fine_tuned_ckpt, hf_config)

    def _read_companion_files(self, name: str) -> dict[str, Any]:
        return read_settings(name)

    def write_companion_files(self, folder: Path) -> None:
        """Write the files with which sentence-transformers loads the folder, with its pooling and prompts."""
        width, longest = self.model.config.hidden_size, find_encoder(self.model).max_length
        write_pooling(folder, self.pooling, width=width, max_length=longest, settings=self.companion_files)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return one embedding for each text, of shape (texts, width)."""
        states = self.model(**inputs).last_hidden_state
        return self.pooling.apply(states, inputs.get("attention_mask", torch.ones(states.shape[:2])).to(states.device))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        """Run the model; ``Distillation`` adds the loss."""
        self(**batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check that a callback has added a loss.

        Raises:
            MisconfigurationException: If there was no loss.
        """
        if not outputs:
            raise MisconfigurationException(
                "SentenceEmbedding has no loss of its own, and callbacks has no Distillation. Add "
                "Distillation(logits_weight=0), which matches the dense model, or set the Trainer's max_epochs=0 to "
                "prune only."
            )

    def calibration_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean over texts of v · f(x), with v drawn from N(0, I) for each text.

        The second moments of its gradients are those of JᵀJ, so importance is measured by the squared distance of
        embeddings. v depends only on the tokens, so it is the same on every process.
        """
        embeddings = self(**batch)
        generator = torch.Generator().manual_seed(int(batch["input_ids"].sum()))
        directions = torch.randn(embeddings.shape, generator=generator).to(embeddings)
        loss: Tensor = (directions * embeddings).sum(-1).mean()
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Correlate the scores with the cosine similarities, and return what :meth:`predict_step` returns."""
        return self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Correlate the scores with the cosine similarities, and return what :meth:`predict_step` returns."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return ``embeddings``; for pairs, those of all first texts, followed by those of all second texts."""
        parts = [batch["first"], batch["second"]] if "first" in batch else [batch]
        return {"embeddings": torch.cat([self(**part) for part in parts])}

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        if "labels" not in batch:
            raise MisconfigurationException(
                f"SentenceEmbedding: the batch has no pairs with scores, only {', '.join(batch)}. Pass validation rows "
                "with two columns of texts and one of scores, or set the Trainer's limit_val_batches=0."
            )
        first, second = self(**batch["first"]), self(**batch["second"])
        similarity = torch.nn.functional.cosine_similarity(first, second)
        self.spearman.update(similarity.float(), batch["labels"].float())
        self.log(
            f"{stage}_spearman",
            self.spearman,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(similarity),
        )
        return {"embeddings": torch.cat([first, second])}
