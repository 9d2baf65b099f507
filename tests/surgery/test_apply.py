"""Applying a plan to a model, with the dense twin as the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.kinds import MATRICES, SUBLAYERS
from helpers.tiny import MODEL_TYPES, RATIOS, batches, classifier, logits, pruned
from torch import nn

from pgb_lightning import MatrixPlan, PruningConfig, PruningPlan, apply_plan, dense_twin, follow_state_dict, prune
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.surgery.apply import prune_linear
from pgb_lightning.surgery.checks import is_pruned, matches
from pgb_lightning.surgery.folding import fold
from pgb_lightning.surgery.new_layers import select_features

#: All families at one ratio, and BERT at all of them.
CASES = [(model_type, ratio) for model_type in MODEL_TYPES for ratio in RATIOS if model_type == "bert" or ratio == 0.5]


def plan_with(encoder_layers: int, **groups: int) -> PruningPlan:
    """Make a plan with some group numbers for all layers, blocks in plain order."""
    matrices = []
    for layer in range(encoder_layers):
        for kind in MATRICES:
            rows, columns = {"W1": (24, 96), "W2": (96, 24)}.get(kind, (24, 24))
            number = groups.get(kind, 1)
            index = [
                tuple(tuple(range(g * size // number, (g + 1) * size // number)) for g in range(number))
                for size in (rows, columns)
            ]
            matrices.append(MatrixPlan(layer, kind, rows, columns, *((None, None) if number == 1 else index)))
    return PruningPlan("bert", tuple(matrices))


@pytest.mark.parametrize(("model_type", "ratio"), CASES)
@pytest.mark.parametrize("preset", ["balanced", "default"])
def test_the_dense_twin_equals_the_grouped_model(model_type: str, ratio: float, preset: str) -> None:
    model = pruned(model_type, ratio, preset).double()
    twin = dense_twin(model)
    assert type(twin) is type(model)
    assert not is_pruned(find_encoder(twin))
    torch.testing.assert_close(logits(twin), logits(model), rtol=0, atol=1e-10)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_gradients_equal_the_dense_twin_s(model_type: str) -> None:
    model = pruned(model_type).double()
    twin = dense_twin(model)
    [batch] = batches(1, seed=7)
    model(**batch).loss.backward()
    twin(**batch).loss.backward()
    other = find_encoder(twin)
    checked = 0
    for layer in range(3):
        for kind in MATRICES:
            try:
                module = find_encoder(model).matrix(layer, kind)
            except AttributeError:
                continue
            if isinstance(module, GroupedLinear):
                gradient = other.matrix(layer, kind).weight.grad.T
                inside = gradient[module.input_index.long().unsqueeze(2), module.output_index.long().unsqueeze(1)]
                torch.testing.assert_close(module.weight.grad, inside, rtol=0, atol=1e-10)
                checked += 1
    assert checked > 0


def test_without_compensation_the_kept_weights_are_the_dense_model_s() -> None:
    model = classifier()
    original = copy.deepcopy(model)
    plan = prune(model, batches(4), PruningConfig(pruning_ratio=0.5, compensation=False))
    for (layer, kind), linear in find_encoder(original).linears():
        module = find_encoder(model).find_matrix(layer, kind)
        if isinstance(module, GroupedLinear):
            sublayer = next(name for name, kinds in SUBLAYERS.items() if kind in kinds)
            hidden = fold([plan.matrix(layer, k) for k in SUBLAYERS[sublayer]], sublayer, 12).hidden
            dense = select_features(linear, hidden, of_inputs=kind in ("O", "W2"))
            inside = module.dense_weight() != 0
            assert torch.equal(module.dense_weight()[inside], dense.weight[inside])
            assert torch.equal(module.bias, dense.bias)


def test_q_and_k_alone_may_become_constants() -> None:
    model = classifier()
    matrices = [
        MatrixPlan(m.layer, m.kind, m.rows, m.columns, (), ()) if m.kind in "QK" else m for m in plan_with(3).matrices
    ]
    apply_plan(find_encoder(model), PruningPlan("bert", tuple(matrices)))
    torch.testing.assert_close(logits(dense_twin(model)), logits(model))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("dropped", [("Q", "K", "V", "O"), ("W1", "W2")])
def test_a_dropped_sublayer_is_a_layernorm_of_its_input_and_a_constant(
    model_type: str, dropped: tuple[str, ...]
) -> None:
    model = classifier(model_type, layers=1)
    matrices = [
        MatrixPlan(0, kind, *{"W1": (24, 96), "W2": (96, 24)}.get(kind, (24, 24)), *index)
        for kind in MATRICES
        for index in [((), ()) if kind in dropped else (None, None)]
    ]
    encoder = find_encoder(model)
    apply_plan(encoder, PruningPlan(model_type, tuple(matrices)))
    hidden = torch.randn(2, 5, 24)
    layer = encoder.layers[0]
    constant = encoder.matrix(0, dropped[-1]).bias
    if dropped[-1] == "O":
        norms = {"distilbert": "sa_layer_norm", "mpnet": "attention.LayerNorm"}
        norm = layer.get_submodule(norms.get(model_type, "attention.output.LayerNorm"))
        output = encoder.run(layer, "attention", hidden)
    else:
        norm = layer.output_layer_norm if model_type == "distilbert" else layer.output.LayerNorm
        output = encoder.run(layer, "ffn", hidden)
    torch.testing.assert_close(output, norm(hidden + constant))
    assert any(isinstance(module, DroppedCore) for module in layer.modules())
    torch.testing.assert_close(logits(dense_twin(model)), logits(model))


def test_a_plan_that_does_not_fit_names_the_first_mismatch_and_changes_nothing() -> None:
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    encoder = find_encoder(model)
    with pytest.raises(ValueError, match=r"2 layers.* 3"):
        apply_plan(encoder, plan_with(2))
    with pytest.raises(ValueError, match=r"model_type='roberta'.* 'bert'"):
        apply_plan(encoder, PruningPlan("roberta", plan_with(3).matrices))
    wide = [MatrixPlan(m.layer, m.kind, 24, 24, None, None) for m in plan_with(3).matrices]
    with pytest.raises(ValueError, match=r"Layer 0 W1: .* 24 x 24.* 24 x 96"):
        apply_plan(encoder, PruningPlan("bert", tuple(wide)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_pruned_encoder_is_not_pruned_again() -> None:
    model = pruned("bert")
    with pytest.raises(ValueError, match="'bert' is already pruned"):
        apply_plan(find_encoder(model), plan_with(3, W1=2, W2=2))
    with pytest.raises(ValueError, match="already pruned"):
        prune(model, batches(1))


class Logits(nn.Module):
    """A model with tensors as inputs and output, as tracers require."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("preset", ["balanced", "default"])
def test_traced_and_exported_models_take_any_number_of_sequences(preset: str) -> None:
    model = Logits(pruned("bert", preset=preset)).eval()
    few, many = (tuple(batches(1, size=size)[0][name] for name in ("input_ids", "attention_mask")) for size in (2, 5))
    traced = torch.jit.trace(model, few, check_trace=False)
    torch.testing.assert_close(traced(*many), model(*many))
    size = torch.export.Dim("size", min=2, max=64)
    exported = torch.export.export(model, few, dynamic_shapes=({0: size}, {0: size})).module()
    torch.testing.assert_close(exported(*many), model(*many))


def test_a_plan_is_applied_to_a_model_or_an_encoder() -> None:
    plan = plan_with(3, W1=2, W2=2)
    models = [classifier() for _ in range(3)]
    apply_plan(models[0], plan)
    apply_plan(find_encoder(models[1]), plan)
    both = nn.ModuleDict({"a": models[2], "b": classifier()})
    with pytest.raises(ValueError, match="encoder="):
        apply_plan(both, plan)
    apply_plan(both, plan, encoder="a")
    with pytest.raises(ValueError, match="encoder='a'"):
        apply_plan(find_encoder(both, "b"), plan, encoder="a")
    assert torch.equal(logits(models[0]), logits(models[1]))
    assert torch.equal(logits(models[0]), logits(models[2]))
    assert not is_pruned(find_encoder(both, "b"))


def test_what_was_frozen_stays_frozen() -> None:
    model, fresh = classifier(), classifier(seed=1)
    for module in (model, fresh):
        module.bert.encoder.layer[0].requires_grad_(False)
    prune(model, batches(4), PruningConfig.from_preset("balanced"))
    follow_state_dict(fresh)
    fresh.load_state_dict(model.state_dict())
    for module in (model, fresh):
        assert any(isinstance(child, GroupedLinear) for child in module.bert.encoder.layer[0].modules())
        assert not any(parameter.requires_grad for parameter in module.bert.encoder.layer[0].parameters())
        assert all(parameter.requires_grad for parameter in module.bert.encoder.layer[1].parameters())


def test_a_subclass_of_linear_is_not_flattened() -> None:
    class Low(nn.Linear):
        """Keeps weights of its own in addition to ``weight``."""

    model = classifier()
    model.bert.encoder.layer[0].attention.self.query = Low(24, 24)
    with pytest.raises(ValueError, match=r"Layer 0 Q of the encoder at 'bert' is a \S+Low"):
        prune(model, batches(1))


def test_layers_that_another_library_exchanged_are_named() -> None:
    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

    model = classifier()
    model.bert.encoder.layer[1].output.dense = Adapter(model.bert.encoder.layer[1].output.dense)
    with pytest.raises(ValueError, match=r"Layer 1 W2 of the encoder at 'bert' is a \S+Adapter"):
        prune(model, batches(1))


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_parts_of_a_sequence_are_refused(model_type: str) -> None:
    model = classifier(model_type, chunk_size_feed_forward=4)
    with pytest.raises(ValueError, match="chunk_size_feed_forward=4"):
        prune(model, batches(1))


def test_a_matrix_that_stays_dense_keeps_its_layer() -> None:
    linear = nn.Linear(4, 4)
    assert prune_linear(linear, MatrixPlan(0, "Q", 4, 4, None, None)) is linear


@pytest.mark.parametrize(("model_type", "ratio"), CASES)
def test_an_encoder_matches_the_plan_it_was_pruned_by_and_no_other(model_type: str, ratio: float) -> None:
    model, other = classifier(model_type), classifier(model_type, seed=2)
    plan = prune(model, batches(6), PruningConfig(pruning_ratio=ratio))
    assert not matches(find_encoder(other), plan)
    prune(other, batches(6), PruningConfig(pruning_ratio=ratio))
    assert matches(find_encoder(model), plan)
    assert not matches(find_encoder(other), plan)
    assert not matches(find_encoder(classifier(model_type, layers=2)), plan)
