"""What every module that fine-tunes a transformers model shares: the model, its checkpoints, its optimizer."""

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
from torch import Tensor, nn
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
from pgb_lightning.packaged import explain_model_errors, resolve_model
from pgb_lightning.surgery.from_state_dict import StructureError, follow_state_dict


class FineTuning(L.LightningModule):
    """Hold a transformers model as ``self.model``, and train it with AdamW under a linear warm-up and decay.

    A checkpoint holds the model's configuration, so that loading it reads neither the Hub nor the folder that
    the weights first came from; it also rebuilds a pruned model. A subclass names the transformers class, and calls
    :meth:`_set_up` in its ``__init__`` after ``save_hyperparameters``.
    """

    auto_model: ClassVar[Any]
    """The transformers class that builds the model, such as ``AutoModelForQuestionAnswering``."""

    def _set_up(
        self,
        model_name_or_path: str,
        learning_rate: float,
        weight_decay: float,
        warmup_ratio: float,
        fine_tuned_ckpt: str | None,
        hf_config: dict[str, Any] | None,
    ) -> None:
        """Check the settings and make the model.

        Raises:
            MisconfigurationException: If a setting is out of range, or ``fine_tuned_ckpt`` is missing or belongs to
                another model.
        """
        if not 0 <= warmup_ratio <= 1:
            raise MisconfigurationException(f"warmup_ratio={warmup_ratio} is out of range: give 0 to 1.")
        if learning_rate <= 0 or weight_decay < 0:
            raise MisconfigurationException(
                f"learning_rate={learning_rate} or weight_decay={weight_decay} is out of range: give a "
                "learning rate above 0 and a weight decay of 0 or more."
            )
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        if fine_tuned_ckpt is not None and not Path(fine_tuned_ckpt).is_file():
            raise MisconfigurationException(
                f"fine_tuned_ckpt={str(fine_tuned_ckpt)!r} is not a file; fine-tune first, or leave it out "
                "to start from the pretrained weights."
            )
        read_weights = fine_tuned_ckpt is None and hf_config is None
        self.model = self._build(str(model_name_or_path), hf_config, read_weights)
        follow_state_dict(self)
        self.hparams["model_name_or_path"] = str(model_name_or_path)
        self._remember_config()
        if fine_tuned_ckpt is not None:
            self._load_fine_tuned(fine_tuned_ckpt)

    # ---- what a subclass may add --------------------------------------------------------------------------

    def _adapt(self, config: PretrainedConfig, name: str, read_weights: bool) -> None:
        """Change a configuration to the task's needs; refuse one that cannot be."""

    def _check_head(self, weights: dict[str, Tensor], path: str) -> None:
        """Refuse the weights of another head."""

    # ---- what does not go together ------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data's tokenizer is the model's, as far as one can tell.

        Raises:
            MisconfigurationException: It makes numbers, or more of them, for which the model has no embedding.
        """
        own, data = self.hparams["model_name_or_path"], self._datamodule()
        length = getattr(data, "max_length", None)
        for encoder in find_encoders(self.model):  # not every tokenizer knows how much its model takes
            if isinstance(length, int) and length > encoder.max_length:
                raise MisconfigurationException(
                    f"max_length={length} of the data is more than model {own!r} takes; give 1 to {encoder.max_length}."
                )
        name = str(getattr(data, "model_name_or_path", own))
        tokenizer = None if name == own else getattr(data, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return
        both = f"The data's tokenizer is of model_name_or_path={name!r}, the model of {own!r}"
        remedy = "set data.model_name_or_path to the model that was fine-tuned"
        if len(tokenizer) > self.model.config.vocab_size:
            raise MisconfigurationException(
                f"{both}, which has {self.model.config.vocab_size} tokens and not {len(tokenizer)}; {remedy}."
            )
        if tokenizer.get_vocab() != _vocabulary(own):
            rank_zero_warn(f"{both}: unless both have the same vocabulary, the model reads other words; {remedy}.")

    def on_train_start(self) -> None:
        """Say which settings a resumed optimizer does not take up."""
        if not self.trainer.ckpt_path or is_overridden("configure_optimizers", self, FineTuning):
            return
        group = self.trainer.optimizers[0].param_groups[0]
        for name, going_on in {"learning_rate": group.get("initial_lr"), "weight_decay": group["weight_decay"]}.items():
            if going_on not in (None, getattr(self, name)):
                rank_zero_warn(
                    f"{name}={getattr(self, name)} changes nothing: the optimizer that ckpt_path brings along goes on "
                    f"with {going_on}. For another, start a new fit from the weights alone (fine_tuned_ckpt)."
                )

    def _datamodule(self) -> Any:
        """Return the data module that serves this run; a Trainer still holds that of the run before."""
        data = getattr(self.trainer, "datamodule", None)
        return data if provides_data(self.trainer, data) else None

    # ---- the model ----------------------------------------------------------------------------------------

    def _build(self, name: str, hf_config: dict[str, Any] | None, read_weights: bool) -> PreTrainedModel:
        if hf_config is not None and "model_type" not in hf_config:
            raise MisconfigurationException(
                f"hf_config has no 'model_type', only {', '.join(hf_config)}; add one, for example bert."
            )
        if hf_config is None:
            with explain_model_errors(name, "configuration"):
                config = AutoConfig.from_pretrained(resolve_model(name))
        else:
            config = AutoConfig.for_model(**hf_config)
        self._adapt(config, name, read_weights)
        # Weights stored in half precision are trained in single, as everything else is.
        model: PreTrainedModel
        if read_weights:
            with explain_model_errors(name, "weights"):
                model = self.auto_model.from_pretrained(resolve_model(name), config=config, dtype=torch.float32)
        else:
            model = self.auto_model.from_config(config, dtype=torch.float32)
        # `from_pretrained` returns evaluation mode, which Lightning would keep: no dropout in training.
        model.train()
        return model

    def _remember_config(self) -> None:
        """Keep the configuration for checkpoints."""
        # They are read with `weights_only=True`: plain values only, hence the trip through JSON.
        self.hparams["hf_config"] = json.loads(self.model.config.to_json_string(use_diff=False))

    def _load_fine_tuned(self, path: str) -> None:
        try:
            weights = load_checkpoint(path)["state_dict"]
        except ValueError as error:
            raise MisconfigurationException(f"fine_tuned_ckpt={error}") from None
        self._check_head(weights, str(path))
        try:
            self.load_state_dict(weights, strict=True)
        except (RuntimeError, StructureError) as error:
            raise MisconfigurationException(
                f"fine_tuned_ckpt={str(path)!r} does not fit "
                f"model_name_or_path={self.hparams['model_name_or_path']!r}; give the model that was "
                f"fine-tuned. {shorten(str(error), 500)}"
            ) from None

    # ---- optimizer ----------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make AdamW with a linear warm-up and decay that move with every optimizer step."""
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise MisconfigurationException(
                "The learning rate falls to zero at the end of training, but training has no end: set the "
                "trainer's max_epochs or max_steps."
            )
        optimizer = torch.optim.AdamW(self._parameter_groups(), lr=self.learning_rate)
        schedule = get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
            optimizer,
            num_warmup_steps=int(self.warmup_ratio * steps),
            num_training_steps=int(steps),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        # By shape and not by name alone: LayerNorms are called differently in every model, and a pruned
        # layer's weight has three dimensions.
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (plain if parameter.ndim < 2 or name.endswith("bias") else decayed).append(parameter)
        return [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]


def _vocabulary(name: str) -> dict[str, int] | None:
    """Read the vocabulary of a model that is at hand; a name on the Hub need not be fetched for it."""
    try:
        vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(
            resolve_model(name), local_files_only=True
        ).get_vocab()
    except Exception:  # gone, never there, or damaged: then nothing is known of it
        return None
    return vocabulary
