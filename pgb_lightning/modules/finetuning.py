"""The base class of the LightningModules: the transformers model, its checkpoints and its optimizer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from pgb_lightning._compat import provides_data
from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.modules.optimizer import find_embeddings, make_adamw, parameter_groups
from pgb_lightning.modules.sentence_files import write_json
from pgb_lightning.packaged import explain_model_errors, resolve_model
from pgb_lightning.surgery.from_state_dict import StructureError, follow_state_dict

#: The entry of a checkpoint for the files of other libraries.
COMPANION_FILES = "pgb_companion_files"


class FineTuning(L.LightningModule):
    """Train a transformers model, ``self.model``, with AdamW and a linear warm-up and decay of the learning rate.

    Checkpoints contain the model's configuration. Loading one needs neither the Hub nor the folder of the pretrained
    weights, and rebuilds a pruned model. Subclasses set ``auto_model``, and call :meth:`_set_rates` and then
    :meth:`_set_model` in their ``__init__``, after ``save_hyperparameters``.
    """

    #: The transformers class that creates the model, such as ``AutoModelForQuestionAnswering``.
    auto_model: ClassVar[Any]

    #: Contents of the files in the model's folder that other libraries need, by their names.
    companion_files: dict[str, Any]

    def _set_rates(
        self, learning_rate: float, weight_decay: float, warmup_ratio: float, embedding_learning_rate: float | None
    ) -> None:
        """Check and set the settings of the optimizer.

        Raises:
            MisconfigurationException: If a setting is out of range.
        """
        if not 0 <= warmup_ratio <= 1:
            raise MisconfigurationException(f"warmup_ratio={warmup_ratio} is out of range. Use 0 to 1.")
        if learning_rate <= 0 or weight_decay < 0:
            raise MisconfigurationException(
                f"learning_rate={learning_rate} or weight_decay={weight_decay} is out of range. Use a "
                "learning rate above 0 and a weight decay of 0 or more."
            )
        if embedding_learning_rate is not None and embedding_learning_rate < 0:
            raise MisconfigurationException(
                f"embedding_learning_rate={embedding_learning_rate} is out of range. Use 0 to freeze the embeddings, a "
                "number above 0, or None for the learning rate of all other parameters."
            )
        self.learning_rate = learning_rate
        self.embedding_learning_rate = embedding_learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio

    def _set_model(
        self, model_name_or_path: str, fine_tuned_ckpt: str | None, hf_config: dict[str, Any] | None
    ) -> None:
        """Create the model.

        Raises:
            MisconfigurationException: If ``fine_tuned_ckpt`` does not exist or is of another model.
        """
        if fine_tuned_ckpt is not None and not Path(fine_tuned_ckpt).is_file():
            raise MisconfigurationException(
                f"fine_tuned_ckpt={str(fine_tuned_ckpt)!r} is not a file. Fine-tune first, or omit it to start "
                "from the pretrained weights."
            )
        read_weights = fine_tuned_ckpt is None and hf_config is None
        self.model = self._build_model(str(model_name_or_path), hf_config, read_weights)
        if self.embedding_learning_rate == 0:
            find_embeddings(self.model).requires_grad_(False)
        self.companion_files = {}
        if hf_config is None:
            with explain_model_errors(str(model_name_or_path), "settings for sentence-transformers"):
                self.companion_files = self._read_companion_files(str(model_name_or_path))
        follow_state_dict(self)
        self.hparams["model_name_or_path"] = str(model_name_or_path)
        self._store_config()
        if fine_tuned_ckpt is not None:
            self._load_fine_tuned(fine_tuned_ckpt)

    # ---- optionally overridden by subclasses ----------------------------------------------------------------

    def _adapt_config(self, config: PretrainedConfig, name: str, read_weights: bool) -> None:
        """Adapt a configuration to the task, or raise an error if its head does not fit."""

    def _check_head(self, checkpoint: dict[str, Any], path: str) -> None:
        """Raise an error if a checkpoint has a head of another size or for other labels."""

    def _read_companion_files(self, name: str) -> dict[str, Any]:
        """Return the contents of the files in the model's folder that other libraries need, by their names."""
        return {}

    def write_companion_files(self, folder: Path) -> None:
        """Write the files that other libraries need in an exported folder.

        Args:
            folder: The folder.
        """
        write_json(folder, self.companion_files)

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the files of other libraries, so that checkpoints do not depend on the folder of the model."""
        if self.companion_files:
            checkpoint[COMPANION_FILES] = self.companion_files

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the files of other libraries."""
        self.companion_files = checkpoint.get(COMPANION_FILES, self.companion_files)

    # ---- training -------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch with labels, and log it as ``train_loss``.

        Raises:
            ValueError: If the batch has no labels.
        """
        loss: Tensor | None = self(**batch).loss
        if loss is None:
            raise ValueError(
                f"The batch has no labels, only {', '.join(batch)}. Use rows with labels, or learn from the dense "
                "model with the callback Distillation(task_weight=0), which needs none."
            )
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        return loss

    # ---- checks ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data's tokenizer fits the model, as far as this can be determined.

        Raises:
            MisconfigurationException: If the tokenizer has more tokens, or the data has longer inputs, than the model
                has embeddings for.
        """
        own, data = self.hparams["model_name_or_path"], self._active_datamodule()
        length = getattr(data, "max_length", None)
        if isinstance(length, int):
            self.check_length(length)
        name = str(getattr(data, "model_name_or_path", own))
        tokenizer = None if name == own else getattr(data, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return
        both = f"The data's tokenizer is that of model_name_or_path={name!r}, but the model is {own!r}"
        remedy = "Set data.model_name_or_path to the model that was fine-tuned"
        if len(tokenizer) > self.model.config.vocab_size:
            raise MisconfigurationException(
                f"{both}, which has {self.model.config.vocab_size} tokens instead of {len(tokenizer)}. {remedy}."
            )
        if tokenizer.get_vocab() != _read_local_vocabulary(own):
            rank_zero_warn(f"{both}. Unless both have the same vocabulary, the model gets wrong token ids. {remedy}.")

    def check_length(self, length: int) -> None:
        """Check that the model accepts inputs of a length, since not all tokenizers know their model's maximum.

        Args:
            length: Number of tokens.

        Raises:
            MisconfigurationException: If the model does not accept as many tokens.
        """
        for encoder in find_encoders(self.model):
            if length > encoder.max_length:
                raise MisconfigurationException(
                    f"max_length={length} of the data is more than the model {self.hparams['model_name_or_path']!r} "
                    f"supports. Use 1 to {encoder.max_length}."
                )

    def on_train_start(self) -> None:
        """Warn about settings that differ from those of a resumed optimizer."""
        if not self.trainer.ckpt_path or is_overridden("configure_optimizers", self, FineTuning):
            return
        group = self.trainer.optimizers[0].param_groups[0]
        for name, resumed in {"learning_rate": group.get("initial_lr"), "weight_decay": group["weight_decay"]}.items():
            if resumed not in (None, getattr(self, name)):
                rank_zero_warn(
                    f"{name}={getattr(self, name)} has no effect: the optimizer state in ckpt_path continues with "
                    f"{resumed}. To change it, start a new fit from the weights only (fine_tuned_ckpt)."
                )

    def _active_datamodule(self) -> Any:
        """Return the data module of this run, or ``None`` (a Trainer keeps that of the previous run)."""
        data = getattr(self.trainer, "datamodule", None)
        return data if provides_data(self.trainer, data) else None

    # ---- model ----------------------------------------------------------------------------------------------

    def _build_model(self, name: str, hf_config: dict[str, Any] | None, read_weights: bool) -> PreTrainedModel:
        if hf_config is not None and "model_type" not in hf_config:
            raise MisconfigurationException(
                f"hf_config has no 'model_type', only {', '.join(hf_config)}. Add one, for example bert."
            )
        if hf_config is None:
            with explain_model_errors(name, "configuration"):
                config = AutoConfig.from_pretrained(resolve_model(name))
        else:
            config = AutoConfig.for_model(**hf_config)
        self._adapt_config(config, name, read_weights)
        # Weights that are stored in half precision are trained in single precision.
        model: PreTrainedModel
        if read_weights:
            with explain_model_errors(name, "weights"):
                model = self.auto_model.from_pretrained(resolve_model(name), config=config, dtype=torch.float32)
        else:
            model = self.auto_model.from_config(config, dtype=torch.float32)
        # `from_pretrained` returns the model in evaluation mode, which Lightning would keep (no dropout in training).
        model.train()
        return model

    def _store_config(self) -> None:
        """Store the configuration in the hyperparameters."""
        # Checkpoints are loaded with `weights_only=True`, so only plain values are allowed. JSON ensures that.
        self.hparams["hf_config"] = json.loads(self.model.config.to_json_string(use_diff=False))

    def _load_fine_tuned(self, path: str) -> None:
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as error:
            raise MisconfigurationException(f"fine_tuned_ckpt={error}") from None
        self._check_head(checkpoint, str(path))
        try:
            self.load_state_dict(checkpoint["state_dict"], strict=True)
        except (RuntimeError, StructureError) as error:
            raise MisconfigurationException(
                f"fine_tuned_ckpt={str(path)!r} does not fit "
                f"model_name_or_path={self.hparams['model_name_or_path']!r}. Pass the model that was "
                f"fine-tuned. The error was: {shorten(str(error), 500)}"
            ) from None

    # ---- optimizer ------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create AdamW with a linear warm-up and decay, updated at every optimizer step."""
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise MisconfigurationException(
                "The learning rate decays to zero at the end of training, but the number of steps is unlimited. Set "
                "the trainer's max_epochs or max_steps."
            )
        rate = self.embedding_learning_rate
        embeddings = find_embeddings(self.model) if rate else None
        groups = parameter_groups(self, self.weight_decay, embeddings, rate)
        optimizer = make_adamw(groups, self.learning_rate, self.trainer)
        schedule = get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
            optimizer,
            num_warmup_steps=int(self.warmup_ratio * steps),
            num_training_steps=int(steps),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _read_local_vocabulary(name: str) -> dict[str, int] | None:
    """Return the vocabulary of a model without downloading it, or ``None`` if it is not available locally."""
    try:
        vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(
            resolve_model(name), local_files_only=True
        ).get_vocab()
    except Exception:  # missing or damaged
        return None
    return vocabulary
