"""Distillation losses against reference values, and recording of forward calls."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.families import TINY, tiny_batches, tiny_model
from helpers.tiny import MODEL_TYPES, batches, classifier, pruned
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from pgb_lightning import PruningConfig, prune
from pgb_lightning.distillation import Teacher, hidden_loss, logits_loss
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.model_calls import Call, record_calls


def call(**output: torch.Tensor) -> Call:
    return Call(output=output)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_calls_are_recorded_with_inputs_outputs_and_hidden_states(model_type: str) -> None:
    model = pruned(model_type)
    given = batches(2)
    with record_calls(model) as calls:
        outputs = [model(**batch) for batch in given]
    assert len(calls) == 2
    for recorded, output, batch in zip(calls, outputs, given, strict=True):
        assert recorded.logits().keys() == {"logits"}
        assert recorded.output is output
        assert [tuple(states.shape) for states in recorded.hidden] == [(8, 11, 24)] * 3
        assert torch.equal(recorded.token_mask(recorded.hidden[0]).bool(), batch["attention_mask"].bool())
        everything = model(**batch, output_hidden_states=True).hidden_states
        torch.testing.assert_close(recorded.hidden, list(everything[1:]))
    model(**given[0])
    assert len(calls) == 2  # the hooks are removed


def test_the_loss_of_a_teacher_with_itself_is_zero_and_it_is_frozen() -> None:
    model = classifier().train()
    teacher = Teacher(copy.deepcopy(model))
    model.eval()
    with record_calls(model) as calls:
        model(**batches(1)[0])
    answer = teacher.run(calls[0])
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not answer.hidden[0].requires_grad
    assert float(logits_loss(calls[0], answer, 2.0).detach()) == pytest.approx(0, abs=1e-6)
    assert float(hidden_loss(calls[0], answer).detach()) == pytest.approx(0, abs=1e-9)
    assert teacher.fingerprint == Teacher(copy.deepcopy(model)).fingerprint
    with torch.no_grad():
        model.classifier.bias[0] += 1e-3
    assert teacher.fingerprint != Teacher(model).fingerprint


def test_classes_are_compared_by_the_softened_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    given, wanted = torch.randn(2, 6, 3, generator=generator)
    expected = 9 * nn.functional.kl_div((given / 3).log_softmax(-1), (wanted / 3).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(logits_loss(call(logits=given), call(logits=wanted), 3.0), expected)


@pytest.mark.parametrize(("width", "exclusive"), [(1, True), (1, False), (4, False)])
def test_other_outputs_are_compared_by_squared_error(width: int, exclusive: bool) -> None:
    given, wanted = torch.zeros(5, width), torch.full((5, width), 2.0)
    assert float(logits_loss(call(logits=given), call(logits=wanted), 7.0, exclusive)) == 4.0


def test_start_and_end_logits_have_equal_weight() -> None:
    model = BertForQuestionAnswering(
        BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    ).eval()
    with record_calls(model) as calls:
        model(input_ids=batches(1)[0]["input_ids"])
    other = {name: value + torch.randn(8, 11) for name, value in calls[0].logits().items()}
    assert other.keys() == {"start_logits", "end_logits"}
    parts = [logits_loss(call(logits=calls[0].logits()[name]), call(logits=other[name]), 2.0) for name in other]
    torch.testing.assert_close(logits_loss(calls[0], call(**other), 2.0), (parts[0] + parts[1]) / 2)


def test_padding_is_ignored() -> None:
    model = BertForTokenClassification(
        BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    ).eval()
    batch = {name: batches(1)[0][name] for name in ("input_ids", "attention_mask")}
    with record_calls(model) as calls:
        model(**batch)
    padding = (1 - batch["attention_mask"]).unsqueeze(-1)
    noise = Call(output={"logits": calls[0].output.logits + padding}, hidden=[h + padding for h in calls[0].hidden])
    assert float(hidden_loss(noise, calls[0])) == 0
    assert float(logits_loss(noise, calls[0], 1.0)) == pytest.approx(0, abs=1e-7)
    zero = Call(hidden=[torch.zeros_like(h) for h in calls[0].hidden])
    assert float(hidden_loss(zero, calls[0])) == pytest.approx(1)


@pytest.mark.parametrize("model_type", TINY)
def test_hidden_states_of_every_family_are_compared_run_by_run(model_type: str) -> None:
    """Also those of pre-norm layers, whose outputs are the residual stream, and of layers that run several times."""
    dense = tiny_model(model_type)
    encoder, teacher = find_encoder(dense), Teacher(copy.deepcopy(dense))
    [batch] = tiny_batches(1)
    with record_calls(dense) as calls:
        dense(**batch)
    answer = teacher.run(calls[0])
    assert len(answer.hidden) == len(encoder.order)
    assert {tuple(states.shape) for states in answer.hidden} == {(*batch["input_ids"].shape, 48)}
    assert torch.equal(answer.token_mask(answer.hidden[0]).bool(), batch["attention_mask"].bool())
    assert float(hidden_loss(calls[0], answer).detach()) == pytest.approx(0, abs=1e-9)

    model = copy.deepcopy(teacher.model).requires_grad_()
    prune(model, tiny_batches(4), PruningConfig(pruning_ratio=0.5))
    trained = [parameter for layer in find_encoder(model).layers for parameter in layer.parameters()]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # further from the teacher, so that rounding errors are far below the loss
        for parameter in trained:
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)

    def compute() -> torch.Tensor:
        with record_calls(model) as calls:
            model(**batch)
        return hidden_loss(calls[0], answer) + logits_loss(calls[0], answer, 2.0)

    loss = compute()
    gradients = torch.autograd.grad(loss, [parameter for parameter in trained if parameter.requires_grad])
    norm = sum(float(gradient.square().sum()) for gradient in gradients)
    with torch.no_grad():  # a step along the gradient, by which the loss should fall by a hundredth
        for parameter, gradient in zip((p for p in trained if p.requires_grad), gradients, strict=True):
            parameter -= 0.01 * float(loss) / norm * gradient
    assert 0.985 * float(loss) < float(compute()) < 0.995 * float(loss)


def test_no_answer_of_the_teacher_begins_at_padding() -> None:
    scores = torch.tensor([[2.0, 1.0, 9.0]])
    mask = torch.tensor([[1, 1, 0]])
    student = Call(output={"start_logits": torch.tensor([[0.5, 1.5, 0.0]])})
    losses = [
        logits_loss(student, Call(output={"start_logits": wanted}, mask=mask), 1.0)
        for wanted in (scores, scores.masked_fill(mask == 0, -torch.inf))
    ]
    torch.testing.assert_close(*losses)
    given = student.output["start_logits"].log_softmax(-1)[:, :2]
    expected = nn.functional.kl_div(given, scores[:, :2].softmax(-1), reduction="batchmean")
    torch.testing.assert_close(losses[0], expected)
