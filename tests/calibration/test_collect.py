"""The calibration pass: exact Fisher information, no side effects, and errors that name the batch."""

from __future__ import annotations

import pytest
import torch
from helpers.kinds import SUBLAYERS
from helpers.tiny import MODEL_TYPES, PADDING, batches, classifier
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.encoders.find import find_encoder


def mean_loss(model: PreTrainedModel):
    return lambda batch: model(**batch).loss


def fisher_by_hand(model: PreTrainedModel, data: list[dict[str, Tensor]]) -> dict[tuple[int, str], Tensor]:
    """Compute the Fisher information with one backward pass per sample."""
    linears = dict(find_encoder(model).linears())
    squares = {key: torch.zeros_like(linear.weight) for key, linear in linears.items()}
    count = 0
    for batch in data:
        for row in range(len(batch["labels"])):
            loss = model(**{name: value[row : row + 1] for name, value in batch.items()}).loss
            gradients = torch.autograd.grad(loss, [linear.weight for linear in linears.values()])
            for key, gradient in zip(linears, gradients, strict=True):
                squares[key] += gradient**2
            count += 1
    return {key: square.T / count for key, square in squares.items()}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_fisher_is_the_mean_squared_gradient_of_single_samples(model_type: str) -> None:
    model = classifier(model_type).double()
    data = [*batches(2, size=3), *batches(1, size=2, seed=9)]  # a smaller last batch counts by its samples
    statistics = calibrate(find_encoder(model), data, mean_loss(model))
    assert statistics.num_samples == 8
    expected = fisher_by_hand(model, data)
    for key, fisher in statistics.fisher.items():
        torch.testing.assert_close(fisher, expected[key], rtol=1e-9, atol=1e-15)


def test_fisher_does_not_depend_on_the_batch_size() -> None:
    model = classifier().double()
    [batch] = batches(1, size=12)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 5), slice(5, 12))]
    encoder = find_encoder(model)
    one = calibrate(encoder, [batch], mean_loss(model)).fisher
    two = calibrate(encoder, halves, mean_loss(model)).fisher
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-9, atol=1e-15)


def test_the_first_layer_s_inputs_are_kept_with_their_real_tokens() -> None:
    model = classifier()
    data = batches(2, size=3)
    statistics = calibrate(find_encoder(model), data, mean_loss(model))
    for given, batch in zip(statistics.inputs, data, strict=True):
        length = int(batch["attention_mask"].sum(1).max())
        assert torch.equal(given.tokens, batch["attention_mask"].bool()[:, :length])
        torch.testing.assert_close(given.hidden, model.bert.embeddings(batch["input_ids"])[:, :length])
        assert not given.hidden.requires_grad


def test_out_of_memory_names_the_batch() -> None:
    def full(batch: dict[str, Tensor]) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(ValueError, match=r"batch 0 .*memory"):
        calibrate(find_encoder(classifier()), batches(2), full)


@pytest.mark.parametrize(("model_type", "left"), [*((model_type, False) for model_type in MODEL_TYPES), ("bert", True)])
def test_padding_shared_by_all_samples_is_removed(model_type: str, left: bool) -> None:
    model = classifier(model_type)
    encoder, [batch] = find_encoder(model), batches(1, size=3)
    sides = (9, 0) if left else (0, 9)
    wide = {name: functional.pad(batch[name], sides, value=PADDING) for name in ("input_ids", "attention_mask")}
    wide["attention_mask"] = functional.pad(batch["attention_mask"], sides)
    [given] = calibrate(encoder, [{**wide, "labels": batch["labels"]}], mean_loss(model)).inputs
    longest = int(batch["attention_mask"].sum(1).max())
    assert given.hidden.shape[:2] == given.tokens.shape == (3, longest)
    assert given.hidden.untyped_storage().nbytes() == given.hidden.nbytes
    with torch.no_grad():
        expected = encoder.model(**wide).last_hidden_state[wide["attention_mask"].bool()]
        hidden = given.hidden
        for layer in encoder.layers:
            for sublayer in SUBLAYERS:
                hidden = encoder.run(layer, sublayer, hidden, given.arguments[0])
    torch.testing.assert_close(hidden[given.tokens], expected)


def test_without_a_mask_every_token_counts() -> None:
    model = classifier()
    data = [{name: batch[name] for name in ("input_ids", "labels")} for batch in batches(1)]
    [given] = calibrate(find_encoder(model), data, mean_loss(model)).inputs
    assert given.tokens.all()


def test_the_model_is_unchanged_afterwards() -> None:
    model = classifier().train()
    model.classifier.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(find_encoder(model), batches(2), mean_loss(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.classifier.weight.requires_grad
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_dropout_is_off_and_the_same_data_give_the_same_statistics() -> None:
    model = classifier().train()
    model.dropout.eval()  # calibrate() switches only the encoder to eval mode
    encoder = find_encoder(model)
    first = calibrate(encoder, batches(2), mean_loss(model)).fisher
    second = calibrate(encoder, batches(2), mean_loss(model)).fisher
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_frozen_weights_get_the_same_fisher() -> None:
    model = classifier()
    expected = calibrate(find_encoder(model), batches(1), mean_loss(model)).fisher
    model.requires_grad_(False)
    frozen = calibrate(find_encoder(model), batches(1), mean_loss(model)).fisher
    assert all(torch.equal(frozen[key], expected[key]) for key in expected)


def test_a_forward_pass_without_gradients_is_ignored() -> None:
    model = classifier()
    [batch] = batches(1)
    encoder = find_encoder(model)

    def with_teacher(batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            model(**batch)
        return model(**batch).loss

    expected = calibrate(encoder, [batch], mean_loss(model))
    found = calibrate(encoder, [batch], with_teacher)
    assert found.num_samples == expected.num_samples
    assert all(torch.equal(found.fisher[key], expected.fisher[key]) for key in expected.fisher)


def test_gradients_that_a_step_computes_itself_do_not_count() -> None:
    model = classifier()
    [batch] = batches(1)
    encoder = find_encoder(model)

    def adversarial(batch: dict[str, Tensor]) -> Tensor:
        embeddings = model.bert.embeddings.word_embeddings.weight
        clean = model(**batch).loss
        [gradient] = torch.autograd.grad(clean, embeddings, retain_graph=True)
        assert gradient.any()
        return clean

    expected = calibrate(encoder, [batch], mean_loss(model), moments=True)
    found = calibrate(encoder, [batch], adversarial, moments=True)
    assert found.num_with_gradient == expected.num_with_gradient
    assert expected.moments is not None
    assert found.moments is not None
    for key in expected.fisher:
        assert torch.equal(found.fisher[key], expected.fisher[key])
        assert torch.equal(found.moments.gradients[key], expected.moments.gradients[key])


def test_fisher_of_half_precision_models_is_in_single_precision() -> None:
    model = classifier().to(torch.bfloat16)
    statistics = calibrate(find_encoder(model), batches(1), mean_loss(model))
    assert {fisher.dtype for fisher in statistics.fisher.values()} == {torch.float32}


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_the_batch_with_a_nan_is_named(poison: str) -> None:
    model = classifier()
    data = batches(4)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        value = model(**batch).loss
        if batch is not data[2]:
            return value
        # sqrt has an infinite slope at 0: the loss is finite, its gradient is not.
        return value * float("nan") if poison == "loss" else value + (value - value).sqrt()

    with pytest.raises(ValueError, match=f"batch 2: .*{poison}"):
        calibrate(find_encoder(model), data, loss)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_empty_loader_and_a_loss_that_is_no_tensor_raise() -> None:
    model = classifier()
    encoder = find_encoder(model)
    with pytest.raises(ValueError, match="empty"):
        calibrate(encoder, [], mean_loss(model))
    with pytest.raises(ValueError, match=r"batch 0: .*float"):
        calibrate(encoder, batches(1), lambda batch: 0.5)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("detached", [False, True])
def test_a_nan_that_does_not_depend_on_the_encoder_is_named(detached: bool) -> None:
    model = classifier(layers=1)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss.detach() * float("nan") if detached else torch.tensor(float("nan"))

    with pytest.raises(ValueError, match=r"batch 0: .*nan"):
        calibrate(find_encoder(model), batches(1), loss)


def test_max_tokens_limits_the_stored_inputs_but_not_the_fisher_information() -> None:
    model = classifier()
    data = batches(5)
    first = int(data[0]["attention_mask"].sum())
    encoder = find_encoder(model)
    limited = calibrate(encoder, data, mean_loss(model), max_tokens=first + 1)
    assert len(limited.inputs) == 2
    assert limited.num_samples == 40
    everything = calibrate(encoder, data, mean_loss(model))
    assert len(everything.inputs) == 5
    assert all(torch.equal(limited.fisher[key], everything.fisher[key]) for key in limited.fisher)
