"""Pruning without labels, for each kind of output: what is drawn, what is left out, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny import batches, classifier
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from pgb_lightning import PruningConfig, PruningPlan, prune
from pgb_lightning.calibration import Calibration, calibrate
from pgb_lightning.calibration.fisher import FisherLoss
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.config import Fisher
from pgb_lightning.encoders.find import find_encoder

Batch = dict[str, Tensor]


def make(head: str = "ForSequenceClassification", **settings: Any) -> PreTrainedModel:
    """Build a BERT of three layers with a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, f"Bert{head}")(classifier(**settings).config).eval()
        return model


def unlabeled(count: int = 3, **settings: int) -> list[Batch]:
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches(count, **settings)]


def calibrated(model: PreTrainedModel, data: list[Any], fisher: Fisher = "auto", **settings: Any) -> Calibration:
    encoder = find_encoder(model)
    return calibrate(encoder, data, FisherLoss(model, encoder, model_loss(model), fisher, **settings), moments=True)


def used(plan: PruningPlan) -> str:
    return str(plan.config["fisher"])


# ---- what is used -----------------------------------------------------------------------------------------------


def test_labels_are_used_if_there_are_any() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert used(prune(classifier(), batches())) == "labels"


@pytest.mark.parametrize(
    ("head", "settings", "expected"),
    [
        ("ForSequenceClassification", {"problem_type": "single_label_classification"}, "predictions"),
        ("ForSequenceClassification", {"problem_type": "multi_label_classification", "num_labels": 3}, "predictions"),
        ("ForSequenceClassification", {"num_labels": 1}, "predictions"),
        ("ForSequenceClassification", {}, "outputs"),  # classes, or independent labels?
        ("ForTokenClassification", {}, "predictions"),
        ("ForMaskedLM", {}, "predictions"),
        ("ForQuestionAnswering", {}, "predictions"),
        ("ForNextSentencePrediction", {}, "predictions"),
        ("Model", {}, "outputs"),
    ],
)
def test_batches_without_labels_work_by_themselves(head: str, settings: dict[str, Any], expected: str) -> None:
    with pytest.warns(UserWarning, match=f"fisher='{expected}'"):
        plan = prune(make(head, **settings), unlabeled(), PruningConfig(pruning_ratio=0.5))
    assert used(plan) == expected
    assert plan.pruning_ratio == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("fisher", ["predictions", "outputs"])
def test_what_is_asked_for_is_used_with_and_without_labels(fisher: Fisher) -> None:
    plans = []
    for data in (batches(), unlabeled(6)):
        model = make(problem_type="single_label_classification")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plans.append(prune(model, data, PruningConfig(fisher=fisher)))
    assert plans[0] == plans[1]
    assert used(plans[0]) == fisher


def test_the_paper_uses_labels_and_refuses_batches_without() -> None:
    config = PruningConfig.from_preset("paper", pruning_ratio=0.5)
    assert used(prune(classifier(), batches(), config)) == "labels"
    with pytest.raises(ValueError, match="fisher='predictions'"):
        prune(classifier(), unlabeled(), config)


def test_a_batch_without_labels_after_one_with_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no loss"):
        prune(classifier(), batches(1) + unlabeled(1))


def test_models_without_predictions_are_refused_if_they_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"BertModel .*fisher='outputs'"):
        prune(make("Model"), unlabeled(), PruningConfig(fisher="predictions"))
    with pytest.raises(ValueError, match="problem_type"):
        prune(make(), unlabeled(), PruningConfig(fisher="predictions"))


def test_a_loss_that_disagrees_with_the_configuration_is_refused() -> None:
    model = make(problem_type="multi_label_classification", num_labels=3)

    def loss(batch: Batch) -> Tensor:
        logits = model(input_ids=batch["input_ids"]).logits
        return functional.cross_entropy(logits, batch["labels"])

    with pytest.raises(ValueError, match="multi_label_classification"):
        prune(model, batches(), PruningConfig(fisher="predictions"), loss=loss)


def test_batches_that_are_no_mappings_are_refused_as_before() -> None:
    with pytest.raises(TypeError, match="loss="):
        prune(classifier(), [(torch.ones(2, 3), torch.ones(2))])


def test_the_own_loss_may_leave_batches_out() -> None:
    model = make(problem_type="single_label_classification")
    kept = batches(4)

    def loss(batch: Batch) -> Tensor | None:
        return None if batch is kept[1] else model(**batch).loss

    assert prune(model, kept, PruningConfig(fisher="predictions"), loss=loss).num_samples == 3 * 8


def test_the_own_loss_may_leave_out_the_first_batch_although_the_model_returns_none() -> None:
    model = classifier()

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor | None:
        value = functional.cross_entropy(model(pair[0]).logits, pair[1])
        return None if pair is pairs[0] else value

    pairs = [(batch["input_ids"], batch["labels"]) for batch in batches(3)]
    plan = prune(model, pairs, loss=loss)
    assert (used(plan), plan.num_samples) == ("labels", 2 * 8)


# ---- what is drawn ----------------------------------------------------------------------------------------------


def exact_fisher(model: PreTrainedModel, data: list[Batch]) -> Tensor:
    """Return the diagonal Fisher information of the last W2, with the sum over all classes in place of draws."""
    weight = find_encoder(model).matrix(-1, "W2").weight
    total, rows = torch.zeros_like(weight), 0
    for batch in data:
        for row in range(len(batch["input_ids"])):
            logits = model(**{name: value[row : row + 1] for name, value in batch.items()}).logits[0]
            for log_probability in logits.log_softmax(-1):
                (gradient,) = torch.autograd.grad(log_probability, weight, retain_graph=True)
                total += log_probability.exp().detach() * gradient.square()
            rows += 1
    return (total / rows).T


def test_the_mean_over_draws_is_the_exact_fisher_information() -> None:
    model, data = make(problem_type="single_label_classification"), unlabeled(1)
    draws = [calibrated(model, data, "predictions", seed=seed).fisher[2, "W2"] for seed in range(120)]
    exact = exact_fisher(model, data)
    found = torch.stack(draws).mean(0)
    assert float((found - exact).norm() / exact.norm()) < 0.15
    labels = calibrated(model, batches(1), "labels").fisher[2, "W2"]
    assert float((labels - exact).norm() / exact.norm()) > 0.3  # the empirical one is another


@pytest.mark.parametrize("head", ["ForTokenClassification", "ForQuestionAnswering", "Model", "ForMaskedLM"])
@pytest.mark.parametrize("fisher", ["predictions", "outputs"])
def test_padding_has_no_gradient(head: str, fisher: Fisher) -> None:
    if (head, fisher) == ("Model", "predictions"):
        pytest.skip("no predictions")
    model, data = make(head), unlabeled(1)
    encoder, hidden = find_encoder(model), []
    loss = FisherLoss(model, encoder, model_loss(model), fisher)
    handle = encoder.layers[-1].register_forward_hook(lambda module, args, output: hidden.append(output))
    value = loss(data[0])
    handle.remove()
    assert value is not None
    (gradient,) = torch.autograd.grad(value, hidden[0])
    tokens = data[0]["attention_mask"].bool()
    assert not gradient[~tokens].any()
    assert gradient[tokens].any(-1).float().mean() > 0.9


def test_ignored_tokens_are_not_drawn() -> None:
    model, (batch,) = make("ForTokenClassification"), unlabeled(1)
    labels = torch.zeros_like(batch["input_ids"])
    labels[:, 2:] = -100
    hidden: list[Tensor] = []
    model.bert.encoder.layer[-1].register_forward_hook(lambda module, args, output: hidden.append(output))
    value = FisherLoss(model, find_encoder(model), model_loss(model), "predictions")({**batch, "labels": labels})
    assert value is not None
    (gradient,) = torch.autograd.grad(value, hidden[0])
    assert gradient[:, :2].any()
    assert not gradient[:, 2:].any()


def test_statistics_of_a_sample_do_not_depend_on_the_size_of_the_batch() -> None:
    """The gradient of a sample is that of a sum over its tokens, whatever else is in the batch."""
    model = make("ForTokenClassification")
    (batch,) = unlabeled(1, size=1)
    alone = [calibrated(model, [batch], "predictions", seed=seed).fisher[0, "Q"] for seed in range(30)]
    doubled = {name: value.repeat(2, 1) for name, value in batch.items()}
    twice = [calibrated(model, [doubled], "predictions", seed=seed).fisher[0, "Q"] for seed in range(30)]
    one, two = torch.stack(alone).mean(0), torch.stack(twice).mean(0)
    assert float(two.sum() / one.sum()) == pytest.approx(1.0, abs=0.25)


def test_calibrations_are_reproducible_and_seeds_differ() -> None:
    model = make(problem_type="single_label_classification")
    before = torch.get_rng_state()
    first, again, other = (calibrated(model, unlabeled(), "predictions", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.fisher[0, "Q"], again.fisher[0, "Q"])
    assert not torch.equal(first.fisher[0, "Q"], other.fisher[0, "Q"])


def test_the_temperature_changes_what_is_drawn() -> None:
    cold, warm = (
        prune(make(), batches(), PruningConfig(fisher="predictions", fisher_temperature=temperature))
        for temperature in (0.1, 50.0)
    )
    assert cold.matrices != warm.matrices
    assert warm.config["fisher_temperature"] == 50.0


# ---- heads outside of the transformers model --------------------------------------------------------------------


class OwnHead(nn.Module):
    """A head of its own on the first token of an encoder, and a loss on its outputs."""

    def __init__(self, num_labels: int = 2) -> None:
        super().__init__()
        self.encoder = make("Model")
        with torch.random.fork_rng(devices=[]):
            self.head = nn.Linear(24, num_labels)

    def logits(self, batch: Batch) -> Tensor:
        states = self.encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return self.head(states[:, 0])  # type: ignore[no-any-return]

    def cross_entropy(self, batch: Batch) -> Tensor:
        return functional.cross_entropy(self.logits(batch), batch["labels"])

    def binary(self, batch: Batch) -> Tensor:
        targets = functional.one_hot(batch["labels"], 2).float()
        return nn.BCELoss()(self.logits(batch).sigmoid(), targets)

    def squared_error(self, batch: Batch) -> Tensor:
        return nn.MSELoss()(self.logits(batch)[:, 0], batch["labels"].float())


@pytest.mark.parametrize("name", ["cross_entropy", "binary", "squared_error"])
def test_labels_are_drawn_for_the_outputs_that_the_loss_is_computed_on(name: str) -> None:
    module = OwnHead()
    encoder = find_encoder(module)
    value = FisherLoss(module, encoder, getattr(module, name), "predictions")(batches(1)[0])
    assert value is not None
    assert module.head.weight.grad is None
    (gradient,) = torch.autograd.grad(value, module.head.weight)
    assert gradient.any()
    assert used(prune(module, batches(), PruningConfig(fisher="predictions"), loss=getattr(module, name))) != "labels"


def test_the_own_loss_of_drawn_classes_is_the_mean_over_samples() -> None:
    module = OwnHead()
    nn.init.zeros_(module.head.weight)
    nn.init.zeros_(module.head.bias)  # all classes have probability 1/2
    value = FisherLoss(module, find_encoder(module), module.cross_entropy, "predictions")(batches(1)[0])
    assert float(value) == pytest.approx(float(torch.tensor(2.0).log()))  # type: ignore[arg-type]


def test_an_own_head_without_labels_falls_back_to_hidden_states() -> None:
    module = OwnHead()
    with pytest.warns(UserWarning, match=r"fisher='outputs'.*KeyError: 'labels'"):
        assert used(prune(module, unlabeled(), loss=module.cross_entropy)) == "outputs"


def test_an_error_of_the_own_loss_is_not_taken_for_missing_labels() -> None:
    def loss(batch: Batch) -> Tensor:
        raise AttributeError("a mistake")

    with pytest.raises(AttributeError, match="a mistake"):
        prune(OwnHead(), batches(), loss=loss)


def test_a_model_that_runs_twice_counts_both_runs() -> None:
    """As in siamese networks: each run has samples of its own."""
    first, second = unlabeled(2)
    for fisher in ("labels", "outputs", "predictions"):
        model = make("Model")

        def loss(pair: tuple[Batch, Batch], model: PreTrainedModel = model) -> Tensor:
            one, two = (model(**each).last_hidden_state[:, 0] for each in pair)
            return functional.mse_loss(functional.cosine_similarity(one, two), torch.ones(8))

        config = PruningConfig(fisher=fisher)  # type: ignore[arg-type]
        assert prune(model, [(first, second)], config, loss=loss).num_samples == 16


def test_a_teacher_that_runs_without_gradients_does_not_count() -> None:
    model = make("ForTokenClassification")

    def loss(batch: Batch) -> Tensor:
        with torch.no_grad():
            model(**batch)
        return model(**batch)["labels"]  # type: ignore[no-any-return]

    with pytest.warns(UserWarning, match="fisher='predictions'"):
        assert prune(model, unlabeled(2), loss=loss).num_samples == 16
