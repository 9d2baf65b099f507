"""Tiny pruned models for question answering."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

from helpers.tiny import batches, classifier
from pgb_lightning import PruningConfig, prune

CLASSES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "mpnet": "MPNet"}


def pruned_reader(model_type: str, ratio: float = 0.5, layers: int = 3, preset: str = "default") -> PreTrainedModel:
    """Build and prune a random model with a question-answering head."""
    settings = classifier(model_type, layers=layers).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, f"{CLASSES[model_type]}ForQuestionAnswering")(settings).eval()
    positions = {"start_positions": torch.zeros(8).long(), "end_positions": torch.ones(8).long()}
    calibration = [{name: batch[name] for name in ("input_ids", "attention_mask")} | positions for batch in batches(4)]
    prune(model, calibration, PruningConfig.from_preset(preset, pruning_ratio=ratio))
    return model
