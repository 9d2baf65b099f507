"""Fits of tiny models with the baselines that train masks."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from helpers.fakes import quiet_trainer
from helpers.tiny import VOCABULARY, batches
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines.masks import kept_weights, mask_zeros
from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.modules import TextClassification

#: Changes of the tiny models: weights that are large enough for masks to matter.
LARGE = {"vocab_size": VOCABULARY, "initializer_range": 0.2}

#: One family of BERT's kind, and one whose sublayers do not contain their LayerNorm.
MODEL_TYPES = ("bert", "distilbert")


def module_of(folder: Path) -> TextClassification:
    """Return a random classifier without dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TextClassification(str(folder), task="sst2", learning_rate=1e-3)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module


def fit(module: TextClassification, callback: MaskTraining, steps: int = 12) -> float:
    """Train a module with a method, and return the fraction of the encoder's weights that is gone."""
    total = kept_weights(find_encoder(module))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        quiet_trainer(callbacks=[callback]).fit(module, DataLoader(batches(steps), batch_size=None))
    masked = copy.deepcopy(module)
    mask_zeros(find_encoder(masked))
    return 1 - kept_weights(find_encoder(masked)) / total


def logits(module: TextClassification) -> Tensor:
    """Return the outputs on other batches, in eval mode."""
    module.eval()
    with torch.no_grad():
        return torch.cat([module.model(**batch).logits for batch in batches(2, seed=5)])


def has_no_trace(module: TextClassification) -> bool:
    """Return whether neither hooks nor a wrapped step are left, besides what a pruned encoder has anyway."""
    parts = [part for part in module.modules() if not isinstance(part, PreTrainedModel)]
    has_hooks = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    return not has_hooks and "training_step" not in vars(module)
