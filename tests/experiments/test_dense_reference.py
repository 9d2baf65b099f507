"""The calibrated dense model: its data, its re-finetuning and its evaluation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.fakes import quiet_trainer
from torch.utils.data import DataLoader

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import methods
from pgb_lightning.experiments.dense_reference import DenseReference

Inputs = dict[str, str]


def test_options_are_passed_to_the_data_module(sst2: Inputs) -> None:
    without = {name: value for name, value in sst2.items() if name != "model_name_or_path"}
    reference = DenseReference.load(**without, seed=3, data_options={"eval_batch_size": 5, "max_length": 16})
    assert len(reference.batches[0]["labels"]) == 5
    assert (reference.data.max_length, reference.data.seed) == (16, 3)
    assert reference.data.model_name_or_path == sst2["model_name_or_path"]


def test_masks_are_kept_in_refinetuning(reference: DenseReference) -> None:
    module = methods.prune(reference, "magnitude", 0.5, []).module
    before = {key: linear.weight.detach().clone() for key, linear in find_encoder(module).linears()}
    reference.refinetune(module, epochs=2, learning_rate=1e-3)
    assert not module.training
    assert module.trainer.global_step == 2 * 2
    for key, linear in find_encoder(module).linears():
        assert isinstance(linear.weight, torch.nn.Parameter)
        assert torch.equal(linear.weight == 0, before[key] == 0)
        assert not torch.equal(linear.weight, before[key])


@pytest.mark.parametrize(("task", "metric"), [("cola", "val_matthews"), ("stsb", "val_spearman")])
def test_the_dense_model_has_no_divergence_and_the_scores_of_validation(
    task: str, metric: str, dense_inputs: Callable[[str], Inputs]
) -> None:
    reference = DenseReference.load(**dense_inputs(task))
    found = reference.evaluate(reference.module)
    assert found.divergence == pytest.approx(0, abs=1e-9)
    loader = DataLoader(reference.batches, batch_size=None)  # type: ignore[arg-type]
    [expected] = quiet_trainer().validate(reference.module, loader, verbose=False)
    assert found.loss == pytest.approx(expected["val_loss"], rel=1e-5)
    assert found.score == pytest.approx(100 * expected[metric], rel=1e-4)
