"""Full-size encoders with random weights: the paper's parameter counts (Tables 1 and A3)."""

from __future__ import annotations

import pytest
import torch
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
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder

# A small vocabulary: embeddings are not counted, and take most of the memory.
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(vocab_size=100)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(vocab_size=100)),
    "mpnet": lambda: MPNetForSequenceClassification(MPNetConfig(vocab_size=100)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(vocab_size=100)),
}


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize(("ratio", "left_of_85m"), [(0.5, 42.5e6), (0.88, 10.2e6)])
def test_the_right_number_of_parameters_is_left(model_type: str, ratio: float, left_of_85m: float) -> None:
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[model_type]()
    total = encoder_cost(find_encoder(model)).parameters
    assert total == pytest.approx(85e6 if model_type != "distilbert" else 42.5e6, rel=0.001)
    batch = {"input_ids": torch.randint(5, 100, (4, 16)), "labels": torch.randint(2, (4,))}
    plan = prune(model, [batch], PruningConfig.from_preset("balanced", pruning_ratio=ratio, compensation=False))
    left = encoder_cost(find_encoder(model)).parameters
    assert left == plan.kept_parameters
    assert left == pytest.approx(left_of_85m * total / 85e6, abs=0.005 * total)
    assert model(**batch).loss.isfinite()
