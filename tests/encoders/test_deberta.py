"""DeBERTa: heads that are counted, position projections, shared Q and K, convolutions, and its own LayerNorm."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.families import TINY, tiny_batches, tiny_config, tiny_logits, tiny_model
from torch import Tensor, nn

from pgb_lightning import PruningConfig, prune
from pgb_lightning.calibration import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.compensation import FitErrors, compensate
from pgb_lightning.compensation.streams import Stream
from pgb_lightning.encoders.deberta_v2 import DEBERTA_V2
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.latency import layer_arguments, layers_runner, random_hidden_states
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.search.latency_table import table_setting
from pgb_lightning.surgery import apply_plan, dense_twin, follow_state_dict

NAMES = [name for name in TINY if name.startswith("deberta")]
SHARED = "deberta-v2"
PROJECTED = "deberta-v2 with position projections"
CONVOLUTION = "deberta-v2 with a convolution"
EVERYTHING = (tuple(range(48)),)
HALVES = (tuple(range(24)), tuple(range(24, 48)))
HEADS = (tuple(range(12, 24)) + tuple(range(36, 48)),)  # the second and the fourth of four


def plan_for(model: Any, **indices: tuple[Any, Any]) -> PruningPlan:
    """Return a plan with the same inputs and outputs for a kind of matrix in all layers; other kinds stay dense."""
    encoder = find_encoder(model)
    matrices = (
        MatrixPlan(layer, kind, linear.in_features, linear.out_features, *indices.get(kind, (None, None)))
        for (layer, kind), linear in encoder.linears()
    )
    return PruningPlan(encoder.model_type, tuple(matrices))


def without_mask(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "attention_mask"}


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("length", [11, 16])  # there are 16 relative embeddings
def test_the_inputs_are_hidden_states_and_not_relative_positions(size: int, length: int) -> None:
    model = tiny_model(SHARED)
    batch = tiny_batches(1, size=size, length=length)[0]
    encoder, seen = find_encoder(model), list[Tensor]()
    encoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    found = calibrate(encoder, [batch], model_loss(model), moments=True)
    assert found.moments is not None
    real = seen[0][batch["attention_mask"].bool()].double()
    torch.testing.assert_close(found.moments.means[0, "Q"], real.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.moments.inputs[0, "Q"], real.T.cov(correction=0), rtol=1e-4, atol=1e-5)
    assert len(found.inputs[0].arguments) == 2


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("length", [13, 16])
@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_gradients_of_relative_positions_count(kind: str, length: int, size: int) -> None:
    model = tiny_model(SHARED)
    batch = tiny_batches(1, size=size, length=length)[0]
    linear, calls = find_encoder(model).matrix(1, kind), list[tuple[Tensor, Tensor]]()
    handle = linear.register_forward_hook(lambda _, args, output: calls.append((args[0].detach(), output)))
    gradients = torch.autograd.grad(model(**batch).loss * size, [output for _, output in calls])
    handle.remove()
    tokens = batch["attention_mask"].unsqueeze(2)
    squares = [torch.einsum("bsm,bsn->bmn", x, g).square().sum(0) for (x, _), g in zip(calls, gradients, strict=True)]
    powers = [(gradients[0] * tokens).square().sum((0, 1)), *(g.square().sum((0, 1)) for g in gradients[1:])]
    assert len(squares) == (1 if kind == "V" else 2)
    found = calibrate(find_encoder(model), [batch], model_loss(model), moments=True)
    assert found.moments is not None
    torch.testing.assert_close(found.fisher[1, kind], sum(squares) / size, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.moments.gradients[1, kind].float(), sum(powers) / size, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", [SHARED, PROJECTED, "deberta"])
def test_what_belongs_to_heads_leaves_with_them(name: str) -> None:
    model = tiny_model(name)
    opening = (EVERYTHING, HEADS)
    apply_plan(model, plan_for(model, Q=opening, K=opening, V=opening, O=(HEADS, EVERYTHING)))
    attention = find_encoder(model).layers[0].attention.self
    assert attention.num_attention_heads == 2
    followers = [path.rpartition(".")[2] for path in find_encoder(model).family.followers]
    left = [getattr(attention, follower) for follower in followers if hasattr(attention, follower)]
    widths = [len(each.weight if isinstance(each, nn.Linear) else each) for each in left]
    assert widths == {SHARED: [], PROJECTED: [24, 24], "deberta": [24] * 4}[name]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("kind", "types", "share"),
    [("Q", ["c2p", "p2c"], 0.5), ("K", ["p2c", "c2p"], 0.5), ("Q", ["p2c"], 1), ("K", ["c2p"], 1)],
)
def test_a_relative_position_counts_as_often_as_tokens_have_it(
    kind: str, types: list[str], share: float, padding: str
) -> None:
    model = tiny_model(SHARED, pos_att_type=types)
    tokens = tiny_batches(1, size=3, padding=padding)[0]["attention_mask"].bool()
    found = DEBERTA_V2.also_read[kind](find_encoder(model).model, tokens)
    assert found is not None
    rows, counts = found
    assert torch.equal(rows, model.deberta.encoder.get_rel_embedding())
    positions = model.deberta.encoder.get_rel_pos(torch.zeros(1, tokens.shape[1], 1))[0]
    expected = torch.zeros(16, dtype=torch.float64)
    for sentence in tokens:
        real = sentence.nonzero().flatten().tolist()
        for i in real:
            for j in real:
                expected[int(positions[i, j]) + 8] += share / len(real)
    torch.testing.assert_close(counts.double(), expected)
    assert float(counts.sum()) == pytest.approx(share * int(tokens.sum()))


@pytest.mark.parametrize(
    ("name", "kind", "reads"),
    [(CONVOLUTION, "K", True), (CONVOLUTION, "Q", False), (PROJECTED, "K", False), (NAMES[-1], "Q", False)],
)
def test_matrices_that_do_not_read_positions(name: str, kind: str, reads: bool) -> None:
    model = find_encoder(tiny_model(name)).model
    found = DEBERTA_V2.also_read[kind](model, torch.ones(2, 5, dtype=torch.bool))
    assert (found is not None) == reads


@pytest.mark.parametrize("ridge", [0.001, "auto"])
def test_shared_matrices_are_refitted_to_positions_too(monkeypatch: pytest.MonkeyPatch, ridge: Any) -> None:
    dense = tiny_model(SHARED)
    batches = tiny_batches(4)
    calibration = calibrate(find_encoder(dense), batches, model_loss(dense))
    plan = plan_for(dense, Q=(HALVES, HALVES), K=(HALVES, HALVES))
    rows = dense.deberta.encoder.get_rel_embedding()
    found: dict[bool, dict[str, float]] = {}
    errors = FitErrors()
    for positions in (False, True):
        family = dataclasses.replace(DEBERTA_V2, also_read=DEBERTA_V2.also_read if positions else {})
        monkeypatch.setitem(FAMILIES, "deberta-v2", family)
        model = copy.deepcopy(dense)
        compensate(find_encoder(model), plan, calibration.inputs, ridge, errors=errors)
        with torch.no_grad():
            found[positions] = {
                kind: float(
                    (find_encoder(model).matrix(0, kind)(rows) - find_encoder(dense).matrix(0, kind)(rows))
                    .square()
                    .mean()
                )
                for kind in ("Q", "K", "V")
            }
    assert found[True]["Q"] < 0.8 * found[False]["Q"]
    assert found[True]["K"] < 0.8 * found[False]["K"]
    assert found[True]["V"] == found[False]["V"] > -1
    assert all(0 <= error < 1 for error in errors.matrices.values())
    assert errors.matrices[0, "Q"] > 0
    assert errors.matrices[0, "V"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_the_convolution_runs_between_the_layers(padding: str) -> None:
    model = tiny_model(CONVOLUTION)
    encoder, batch = find_encoder(model), tiny_batches(1, padding=padding)[0]
    if padding != "none":  # columns that are padding in every sentence, which calibration does not store
        batch["attention_mask"][:, slice(-3, None) if padding == "right" else slice(3)] = 0
    given = calibrate(encoder, [batch], model_loss(model)).inputs[0]
    stream = Stream(given, model.device)
    with torch.no_grad():
        for step, layer in enumerate(encoder.layers):
            stream.go_to(encoder, step)
            stream.go_to(encoder, step)  # has no effect
            for name in SUBLAYERS:
                stream.dense = stream.pruned = stream.run(encoder, layer, name, stream.dense)
        expected = encoder.model(**{name: value for name, value in batch.items() if name != "labels"})[0]
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    torch.testing.assert_close(stream.dense[given.tokens], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_measured_is_what_the_model_computes(name: str) -> None:
    encoder = find_encoder(tiny_model(name))
    hidden = random_hidden_states(encoder, 2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    with torch.no_grad():
        expected = encoder.model.encoder(hidden, mask).last_hidden_state
        torch.testing.assert_close(layers_runner(encoder, 2, 9)(), expected, rtol=1e-4, atol=1e-5)
    arguments = layer_arguments(encoder, 2, 9)
    assert all(given["rel_embeddings"] is arguments[0]["rel_embeddings"] for given in arguments)


def test_latency_tables_of_different_attention_are_different() -> None:
    settings = [table_setting(find_encoder(tiny_model(name)), 1, 16) for name in NAMES]
    assert all(settings.index(setting) == number for number, setting in enumerate(settings))


@pytest.mark.parametrize("name", [SHARED, "deberta"])
@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM"])
def test_heads(name: str, head: str, tmp_path: Path) -> None:
    model = tiny_model(name, head)
    batch = tiny_batches(1)[0]
    labels = batch.pop("labels")
    if head == "QuestionAnswering":
        batch |= {"start_positions": labels, "end_positions": labels + 1}
    else:
        batch["labels"] = labels if head == "SequenceClassification" else batch["input_ids"] % 2
    prune(model, [batch], PruningConfig.from_preset("balanced", pruning_ratio=0.5))
    with torch.no_grad():
        expected = model(**batch)[1]
        torch.testing.assert_close(dense_twin(model)(**batch)[1], expected, rtol=0, atol=1e-4)
        model.save_pretrained(tmp_path)
        loaded = getattr(transformers, f"AutoModelFor{head}").from_pretrained(tmp_path)
        assert torch.equal(loaded.eval()(**batch)[1], expected)


def test_multiple_choice() -> None:
    model = transformers.DebertaV2ForMultipleChoice(tiny_config(SHARED)).eval()
    batch = {name: torch.stack([value, value.flip(0)], 1) for name, value in tiny_batches(1)[0].items()}
    batch["labels"] = batch["labels"][:, 0]
    plan = prune(model, [batch], PruningConfig(pruning_ratio=0.5))
    assert plan.pruning_ratio == pytest.approx(0.5, abs=0.03)
    assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_pruned_in_two_steps(name: str) -> None:
    model = tiny_model(name)
    for ratio in (0.3, 0.6):
        plan = prune(model, tiny_batches(2), PruningConfig(pruning_ratio=ratio, max_groups=1))
    assert plan.pruning_ratio == pytest.approx(0.6, abs=0.03)
    torch.testing.assert_close(tiny_logits(dense_twin(model)), tiny_logits(model), rtol=0, atol=1e-4)
    other = tiny_model(name, seed=1)
    follow_state_dict(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(tiny_logits(other), tiny_logits(model))


@pytest.mark.parametrize("name", ["deberta", "bert"])
def test_a_part_of_a_state_dict_changes_nothing(name: str) -> None:
    """DeBERTa has a LayerNorm class of its own, whose entries a complete encoder has."""
    model, other = tiny_model(name), tiny_model(name, seed=1)
    prune(model, tiny_batches(2), PruningConfig(pruning_ratio=0.6, max_groups=1))
    follow_state_dict(model)
    sizes = [as_matrix(linear).in_features for _, linear in find_encoder(model).linears()]
    part = {key: value for key, value in other.state_dict().items() if "LayerNorm" not in key and "dense" not in key}
    model.load_state_dict({key: part[key] for key in part if "embeddings" in key}, strict=False)
    assert sizes == [as_matrix(linear).in_features for _, linear in find_encoder(model).linears()]


def test_heads_that_are_mixed_are_refused() -> None:
    model = tiny_model("deberta", talking_head=True)
    with pytest.raises(ValueError, match="talking_head=True"):
        prune(model, tiny_batches(1))
