"""Tiny random classifiers and batches, for tests of the method."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from pgb_lightning import PruningConfig, prune

MODEL_TYPES = ("bert", "roberta", "distilbert", "mpnet")
RATIOS = (0.3, 0.5, 0.88)
VOCABULARY = 60
PADDING = 1


def classifier(model_type: str = "bert", layers: int = 3, seed: int = 0, **settings: object) -> PreTrainedModel:
    """Build a random classifier whose weights are large enough for pruning to change its outputs.

    Its width of 24 is divisible by 1, 2, 3, 4 and 6.

    Raises:
        ValueError: If the model type is unknown.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        common = {"vocab_size": VOCABULARY, "pad_token_id": PADDING, "initializer_range": 0.2, **settings}
        if model_type == "distilbert":
            sizes = {"dim": 24, "n_layers": layers, "n_heads": 2, "hidden_dim": 96, "max_position_embeddings": 40}
            return DistilBertForSequenceClassification(DistilBertConfig(**{**sizes, **common})).eval()
        sizes = {
            "hidden_size": 24,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 96,
            "max_position_embeddings": 40,
        }
        if model_type == "roberta":
            return RobertaForSequenceClassification(RobertaConfig(**{**sizes, **common})).eval()
        if model_type == "mpnet":
            return MPNetForSequenceClassification(MPNetConfig(**{**sizes, **common})).eval()
        if model_type == "bert":
            return BertForSequenceClassification(BertConfig(**{**sizes, **common})).eval()
    raise ValueError(f"model_type={model_type!r} has no tiny model. Add it to MODEL_TYPES and to classifier().")


def batches(count: int = 6, size: int = 8, length: int = 11, seed: int = 0) -> list[dict[str, Tensor]]:
    """Make labeled batches with padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        lengths = torch.randint(3, length + 1, (size, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        tokens = torch.randint(2, VOCABULARY, (size, length), generator=generator)
        labels = torch.randint(2, (size,), generator=generator)
        made.append({"input_ids": tokens * mask + PADDING * (1 - mask), "attention_mask": mask, "labels": labels})
    return made


def logits(model: PreTrainedModel, seed: int = 5) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(**batch).logits for batch in batches(2, seed=seed)])


def pruned(model_type: str, ratio: float = 0.5, preset: str = "balanced", **settings: object) -> PreTrainedModel:
    """Make a pruned model; the usual preset has groups at any ratio, the default one where they pay."""
    model = classifier(model_type, **settings)
    prune(model, batches(6), PruningConfig.from_preset(preset, pruning_ratio=ratio))
    return model
