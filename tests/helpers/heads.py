"""Tiny models with every head, and plans that remove given matrices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from helpers.tiny import MODEL_TYPES, VOCABULARY, classifier
from pgb_lightning import MatrixPlan, PruningPlan, apply_plan
from pgb_lightning.encoders.find import find_encoder

FAMILIES = dict(zip(MODEL_TYPES, ("Bert", "Roberta", "DistilBert", "MPNet"), strict=True))
ATTENTION, FFN = ("Q", "K", "V", "O"), ("W1", "W2")

#: Layer 1 loses its attention and layer 2 its feed-forward sublayer.
DROPS = {1: ATTENTION, 2: FFN}
ALL_ATTENTION = dict.fromkeys(range(3), ATTENTION)
EVERYTHING = dict.fromkeys(range(3), ATTENTION + FFN)

HEADS = (
    "Model",
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForTokenClassification",
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForPreTraining",
)

#: Classes that can be exported, as (model type, suffix of the class name).
CLASSES = [
    (model_type, head)
    for model_type, family in FAMILIES.items()
    for head in HEADS
    if hasattr(transformers, family + head)
]


def removing(model: PreTrainedModel, removed: Mapping[int, Collection[str]]) -> PruningPlan:
    """Return a plan that removes matrices, given for each layer, and keeps the others dense."""
    encoder = find_encoder(model)
    matrices = []
    for (layer, kind), linear in encoder.linears():
        index: Any = () if kind in removed.get(layer, ()) else None
        matrices.append(MatrixPlan(layer, kind, linear.in_features, linear.out_features, index, index))
    return PruningPlan(encoder.model_type, tuple(matrices))


def build(model_type: str = "bert", head: str = "Model", seed: int = 0, **arguments: Any) -> PreTrainedModel:
    """Build a dense model of three layers with a head, such as ``ForMaskedLM``."""
    config = classifier(model_type, attn_implementation="eager").config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, FAMILIES[model_type] + head)(config, **arguments).eval()  # type: ignore[no-any-return]


def build_pruned(
    model_type: str = "bert",
    head: str = "Model",
    removed: Mapping[int, Collection[str]] = DROPS,
    **arguments: Any,
) -> PreTrainedModel:
    model = build(model_type, head, **arguments)
    apply_plan(model, removing(model, removed))
    return model


@torch.no_grad()
def run(model: PreTrainedModel, **settings: Any) -> Any:
    """Run a model on some tokens, on several choices if it has such a head."""
    shape = (2, 3, 7) if type(model).__name__.endswith("ForMultipleChoice") else (2, 7)
    tokens = torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(3))
    return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens), **settings)


def assert_same_outputs(model: PreTrainedModel, other: PreTrainedModel) -> None:
    expected, found = run(model), run(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
