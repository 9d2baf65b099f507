"""Encoders of full size with random weights have the paper's parameter counts (Tables 1 and A3)."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from pgb_lightning import PruningConfig, prune
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder

pytestmark = [pytest.mark.full_size, pytest.mark.slow]

# The encoders of RoBERTa-base and MPNet-base have the shapes of BERT-base. The vocabulary is small to save memory;
# embeddings are not counted.
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(vocab_size=100)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(vocab_size=100)),
}


@pytest.mark.parametrize(
    ("model_type", "ratio", "dense", "kept"),
    [("bert", 0.5, 85e6, 42.5e6), ("bert", 0.88, 85e6, 10.2e6), ("distilbert", 0.88, 42.5e6, 5.1e6)],
)
def test_parameter_counts(model_type: str, ratio: float, dense: float, kept: float) -> None:
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[model_type]()
    total = encoder_cost(find_encoder(model)).parameters
    assert total == pytest.approx(dense, rel=0.001)
    batch = {"input_ids": torch.randint(5, 100, (1, 16)), "labels": torch.randint(2, (1,))}
    # Parameter counts depend on the group numbers only, so permutations are made quickly.
    config = PruningConfig.from_preset("paper", pruning_ratio=ratio, num_permutations=1, compensation=False)
    plan = prune(model, [batch], config)
    left = encoder_cost(find_encoder(model)).parameters
    assert left == plan.kept_parameters
    assert left == pytest.approx(kept, abs=0.005 * total)
    assert model(**batch).loss.isfinite()
