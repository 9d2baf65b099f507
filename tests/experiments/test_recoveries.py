"""Recoveries by name: what is trained, by which losses, and from which teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.tiny import classifier

from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.experiments.recoveries import RECIPE, RECOVERIES, Recovery, have_same_hidden_states, recover
from pgb_lightning.modules import TextClassification

pytestmark = pytest.mark.usefixtures("restored_threads")


def test_the_paper_is_a_recovery_and_the_others_change_one_part_of_the_recipe() -> None:
    assert RECOVERIES["finetune"] == Recovery()
    assert (Recovery().learning_rate, Recovery().task_weight, Recovery().logits_weight) == (3e-5, 1.0, 0.0)
    for name, recovery in RECOVERIES.items():
        if not name.startswith("finetune"):
            changed = [key for key, value in vars(recovery).items() if value != vars(RECIPE)[key]]
            assert len(changed) == (name != "distill")


def test_the_command_gives_epochs_and_may_override_the_learning_rate() -> None:
    assert RECIPE.settings(epochs=3)["epochs"] == 3
    assert RECOVERIES["one epoch"].settings(epochs=3)["epochs"] == 1
    assert RECIPE.settings(epochs=3, learning_rate=2e-5) == {**vars(RECIPE), "epochs": 3, "learning_rate": 2e-5}


def test_models_of_another_depth_or_width_have_other_hidden_states() -> None:
    dense = classifier()
    assert have_same_hidden_states(dense, copy.deepcopy(dense))
    assert not have_same_hidden_states(dense, classifier(layers=2))
    assert not have_same_hidden_states(dense, classifier(hidden_size=12))


def narrow(reference: DenseReference) -> TextClassification:
    """Return a module whose hidden states have half the width of the dense model's."""
    module = copy.deepcopy(reference.module)
    config = copy.deepcopy(module.model.config)
    config.hidden_size, config.intermediate_size = config.hidden_size // 2, config.intermediate_size // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.model = type(module.model)(config)
    return module


def test_a_narrower_model_learns_from_the_outputs_alone(reference: DenseReference) -> None:
    module = narrow(reference)
    before = reference.evaluate(module).divergence
    dense = copy.deepcopy(reference.module.model)
    settings = RECIPE.settings(epochs=8, learning_rate=5e-3)
    losses = recover(module, reference.module.model, reference.data, settings, "32-true", seed=0)
    assert losses == {"task_weight": 0.0, "logits_weight": 1.0, "hidden_weight": 0.0}
    assert reference.evaluate(module).divergence < 0.7 * before
    assert all(torch.equal(*pair) for pair in zip(dense.parameters(), reference.module.model.parameters(), strict=True))
    settings = RECOVERIES["hidden states only"].settings(epochs=1)
    with pytest.raises(ValueError, match=r"hidden_weight .*logits_weight"):
        recover(module, reference.module.model, reference.data, settings, "32-true", seed=0)


@pytest.mark.parametrize(("name", "trained"), [("distill", True), ("frozen embeddings", False)])
def test_embeddings_can_be_frozen(name: str, trained: bool, reference: DenseReference) -> None:
    module = copy.deepcopy(reference.module)
    module.model.classifier.bias.data.zero_()
    module.model.classifier.weight.data.zero_()
    embeddings = module.model.bert.embeddings.word_embeddings.weight
    before = embeddings.detach().clone()
    settings = RECOVERIES[name].settings(epochs=1, learning_rate=1e-3)
    recover(module, reference.module.model, reference.data, settings, "32-true", seed=0)
    assert torch.equal(embeddings, before) != trained
    assert not torch.equal(module.model.classifier.weight, torch.zeros_like(module.model.classifier.weight))
