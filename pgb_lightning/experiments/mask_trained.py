"""Prune a fine-tuned model with a method that trains masks."""

from __future__ import annotations

import copy
import gc
from dataclasses import asdict

import lightning as L

from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.masks import kept_weights, mask_zeros
from pgb_lightning.experiments.baselines.trained.registry import TRAINED
from pgb_lightning.experiments.fine_tuned import FineTuned, PrunedModel, size
from pgb_lightning.experiments.metering import metered
from pgb_lightning.experiments.records import Result
from pgb_lightning.experiments.recoveries import Recovery
from pgb_lightning.experiments.training import make_trainer


def train_masks(model: FineTuned, method: str, ratio: float, epochs: float) -> PrunedModel:
    """Train masks on a copy of a dense model.

    Args:
        model: The dense model with its data.
        method: Name in :data:`~pgb_lightning.experiments.baselines.trained.registry.TRAINED`.
        ratio: Fraction of the encoder's weights to remove.
        epochs: Number of epochs.

    Returns:
        The pruned model. Weights that are only zero, not removed, have masks that keep them zero in further training.
    """
    gc.collect()  # a Trainer and its module refer to each other: free the previous model before this one is trained
    baseline = TRAINED[method]
    module = copy.deepcopy(model.module)
    dense = encoder_cost(find_encoder(module)).parameters
    L.seed_everything(model.seed)
    module.learning_rate = baseline.learning_rate
    module.train()
    trainer = make_trainer(
        epochs,
        precision=model.precision,
        callbacks=[baseline.make(ratio)],
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    with metered() as usage:
        trainer.fit(module, datamodule=model.data)
    module.cpu().eval()
    before = model.score(module)
    encoder = find_encoder(module)
    mask_zeros(encoder)
    removed = 1 - kept_weights(encoder) / dense
    return PrunedModel(module, {"removed": removed, **size(module), "before": before, "pruning": asdict(usage)})


def final_settings(method: str, epochs: float) -> Result:
    """Return the settings of training a model after a method has pruned it.

    With a teacher, the model learns its outputs and hidden states, without labels, in the same way for all methods.

    Args:
        method: Name in :data:`~pgb_lightning.experiments.baselines.trained.registry.TRAINED`.
        epochs: Number of epochs.
    """
    baseline = TRAINED[method]
    teaching = 1.0 if baseline.is_taught else 0.0
    recovery = Recovery(
        learning_rate=baseline.final_learning_rate,
        task_weight=1.0 - teaching,
        logits_weight=teaching,
        hidden_weight=teaching,
    )
    return recovery.settings(epochs)
