"""The operations of a training step of a pruned model, counted: a test of its speed without a clock."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers.tiny import batches, classifier
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from pgb_lightning import apply_plan
from pgb_lightning.benchmark.models import narrow_plan
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.training_step import TrainingStep, Variant, make_optimizer

#: What waits for the device, or reads a value back.
SYNCHRONIZATIONS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")


def make_step(model: PreTrainedModel, **variant: bool) -> TrainingStep:
    return TrainingStep(model.train(), batches(1)[0], make_optimizer(model), Variant(**variant))


def counted(step: TrainingStep) -> Counter[str]:
    """Count the operations of a training step, after one that creates the optimizer's state."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    return Counter(event.name for event in recorded.events() or () if event.name.startswith("aten::"))


def test_a_narrow_model_runs_the_operations_of_the_dense_one() -> None:
    """No operation is added by pruning to fewer heads and neurons, forward, backward or in the optimizer."""
    dense, narrow = classifier(layers=2), classifier(layers=2)
    encoder = find_encoder(narrow)
    apply_plan(encoder, narrow_plan(encoder, 0.5))
    added = counted(make_step(narrow)) - counted(make_step(dense))
    assert set(added) <= {"aten::view"}  # which computes nothing


def test_parameters_with_and_without_weight_decay_are_updated_by_one_operation_each() -> None:
    assert counted(make_step(classifier(layers=2)))["aten::_fused_adamw_"] == 2


def test_clipping_reads_nothing_back() -> None:
    step = make_step(classifier(layers=1))
    step.model(**step.batch).loss.backward()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        torch.nn.utils.clip_grad_norm_(step.model.parameters(), 1.0)
    assert not [event.name for event in recorded.events() or () if event.name in SYNCHRONIZATIONS]


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_embeddings_compute_no_gradient_of_the_tables(frozen: bool) -> None:
    tables = 3  # tokens, positions and token types
    assert counted(make_step(classifier(layers=1), frozen_embeddings=frozen))["aten::embedding_dense_backward"] == (
        0 if frozen else tables
    )


def test_fast_dropout_leaves_torch_only_the_random_numbers_of_attention() -> None:
    before = counted(make_step(classifier(layers=2)))["aten::bernoulli_"]
    operations = counted(make_step(classifier(layers=2), fast_dropout=True))
    assert operations["aten::bernoulli_"] == 2  # one for each layer's attention weights
    # The embeddings, two for each layer, and the head.
    assert operations["aten::random_"] == before - 2 == 1 + 2 * 2 + 1
