"""Rebuilding from a state dict: the structure that is read off it, and the state dicts that are refused."""

from __future__ import annotations

import copy
import io
import pickle
import re
from typing import Any

import pytest
import torch
from helpers.tiny import MODEL_TYPES, RATIOS, batches, classifier, logits, pruned
from torch import nn

from pgb_lightning import MatrixPlan, PruningConfig, PruningPlan, apply_plan, follow_state_dict, prune
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.dense_twin import dense_twin
from pgb_lightning.surgery.from_state_dict import StructureError, find_missing_encoder, follows_state_dict


@pytest.mark.parametrize(
    ("model_type", "ratio"), [(m, r) for m in MODEL_TYPES for r in RATIOS if m == "bert" or r == 0.5]
)
@pytest.mark.parametrize("preset", ["balanced", "default"])
def test_a_state_dict_rebuilds_the_grouped_model(model_type: str, ratio: float, preset: str) -> None:
    model = pruned(model_type, ratio, preset)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    fresh = nn.ModuleDict({"net": classifier(model_type, seed=1)})
    follow_state_dict(fresh)
    follow_state_dict(fresh)  # a second call has no effect
    state = {f"net.{name}": value for name, value in torch.load(stored, weights_only=True).items()}
    fresh.load_state_dict(state)
    assert torch.equal(logits(fresh["net"]), logits(model))
    assert fresh.state_dict().keys() == state.keys()
    fresh.load_state_dict(state)  # a pruned module loads it without changes
    assert torch.equal(logits(fresh["net"]), logits(model))


def test_rebuilding_keeps_a_fresh_module_s_mode_and_type() -> None:
    model = pruned("bert")
    fresh = classifier(seed=1).to(torch.bfloat16).train()
    follow_state_dict(fresh)
    fresh.load_state_dict(model.state_dict())
    assert all(module.training for module in fresh.modules() if isinstance(module, GroupedLinear))
    assert {p.dtype for p in fresh.parameters()} == {torch.bfloat16}


def test_a_dense_state_dict_still_loads_into_a_dense_module_only() -> None:
    dense = classifier(seed=2)
    fresh = classifier(seed=1)
    follow_state_dict(fresh)
    fresh.load_state_dict(dense.state_dict())
    assert torch.equal(logits(fresh), logits(dense))
    grouped = pruned("bert")
    follow_state_dict(grouped)
    with pytest.raises(ValueError, match=r"\.weight"):
        grouped.load_state_dict(dense.state_dict())


def test_following_survives_a_deep_copy() -> None:
    fresh = classifier(seed=1)
    follow_state_dict(fresh)
    copied = copy.deepcopy(fresh)
    copied.load_state_dict(pruned("bert").state_dict())
    assert is_pruned(find_encoder(copied))
    assert not is_pruned(find_encoder(fresh))


def test_a_part_of_a_state_dict_does_not_change_the_structure() -> None:
    model = classifier()
    follow_state_dict(model)
    biases = {name: value + 1 for name, value in model.state_dict().items() if name.endswith("bias")}
    model.load_state_dict(biases, strict=False)
    assert not is_pruned(find_encoder(model))
    assert torch.equal(
        model.state_dict()["bert.encoder.layer.0.output.dense.bias"], biases["bert.encoder.layer.0.output.dense.bias"]
    )


def test_following_survives_pickling() -> None:
    fresh = pickle.loads(pickle.dumps(following()))
    assert follows_state_dict(fresh)
    fresh.load_state_dict(pruned("bert").state_dict())
    assert is_pruned(find_encoder(fresh))


def following(**settings: Any) -> nn.Module:
    model = classifier(**{"seed": 1, **settings})
    assert not follows_state_dict(model)
    follow_state_dict(model)
    return model


@pytest.mark.parametrize(
    ("settings", "grouped", "message"),
    [
        ({"layers": 2}, True, "'bert.encoder.layer' has 3 layers.* 2"),
        ({"layers": 4}, True, "'bert.encoder.layer' has 3 layers.* 4"),
        ({"intermediate_size": 48}, True, r"intermediate.dense: .* 24 x 48"),
        ({"intermediate_size": 48}, False, r"intermediate.dense: .* 24 x 48"),
    ],
)
def test_another_encoder_is_refused_and_nothing_changes(settings: dict[str, Any], grouped: bool, message: str) -> None:
    model = following(**settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(StructureError, match=message):
        model.load_state_dict((pruned("bert") if grouped else classifier()).state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_blocks_outside_the_matrix_are_refused() -> None:
    state = pruned("bert").state_dict()
    name = next(name for name in state if name.endswith("output_index"))
    state[name] = state[name] + 1000
    with pytest.raises(StructureError, match=r"blocks of \d+ x \d+"):
        following().load_state_dict(state)
    del state[name]
    with pytest.raises(StructureError, match=r"blocks of \d+ x \d+"):
        following().load_state_dict(state)


class Adapter(nn.Module):
    """A layer of another library around a dense one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora(x)


@pytest.mark.parametrize("name", ["value", "query"])
def test_layers_of_other_libraries_load_their_own_state_dict(name: str) -> None:
    model = following()
    attention = model.bert.encoder.layer[0].attention.self
    setattr(attention, name, Adapter(getattr(attention, name)))
    state = {key: value + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_narrowed_model_with_adapters_loads_its_own_state_dict() -> None:
    """The adapters hide the biases from which the number of heads and neurons is read otherwise."""
    model = pruned("bert", preset="default")
    follow_state_dict(model)
    for layer in model.bert.encoder.layer:
        layer.attention.self.value = Adapter(layer.attention.self.value)
        layer.intermediate.dense = Adapter(layer.intermediate.dense)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(TypeError, match=r"Adapter holds a matrix.*Merge adapters"):
        dense_twin(model)


def test_a_parametrized_layer_loads_its_own_state_dict() -> None:
    model = following()
    nn.utils.parametrizations.orthogonal(model.bert.encoder.layer[0].attention.self.value)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert not is_pruned(find_encoder(model))


def test_a_position_that_appears_twice_is_refused() -> None:
    state = pruned("bert", preset="paper").state_dict()
    name = next(name for name in state if name.endswith("input_index"))
    state[name] = state[name].clone()
    state[name][0, 0] = state[name][0, 1]
    with pytest.raises(StructureError, match=r"blocks of \d+ x \d+"):
        following().load_state_dict(state)


def test_weights_that_are_missing_from_a_foreign_state_dict_are_not_taken_for_removed_ones() -> None:
    """Without the weight of V, a bias alone would make it a removed matrix."""
    state = {**classifier().state_dict(), "another.weight": torch.zeros(1)}
    del state["bert.encoder.layer.1.attention.self.value.weight"]
    model = following()
    with pytest.raises(StructureError, match=r"layer 1: V .*Q, K, V, O"):
        model.load_state_dict(state, strict=False)
    assert not is_pruned(find_encoder(model))


def test_a_newer_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupedLinear, "_version", 2)
    state = pruned("bert").state_dict()
    monkeypatch.setattr(GroupedLinear, "_version", 1)
    with pytest.raises(StructureError, match=r"layout 2.* 1"):
        following().load_state_dict(state)


@pytest.mark.parametrize(
    "chosen", [("classifier",), ("bias", "LayerNorm.weight", "classifier"), ("bert.embeddings",), ("layer.0.",)]
)
def test_part_of_a_dense_model_is_loaded_as_torch_loads_it(chosen: tuple[str, ...]) -> None:
    model, other = following(), classifier(seed=3)
    part = {name: value for name, value in other.state_dict().items() if any(key in name for key in chosen)}
    rest = {name: value.clone() for name, value in model.state_dict().items() if name not in part}
    model.load_state_dict(part, strict=False)
    assert not is_pruned(find_encoder(model))
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in {**rest, **part}.items())


def test_another_head_is_refused_before_the_encoder_changes() -> None:
    model = following(num_labels=3)
    with pytest.raises(StructureError, match=r"classifier.weight: .*\(2, 24\).* \(3, 24\)"):
        model.load_state_dict(pruned("bert").state_dict())
    assert not is_pruned(find_encoder(model))


def test_the_prefix_of_a_wrapped_module_is_named() -> None:
    state = {f"_orig_mod.{name}": value for name, value in pruned("bert").state_dict().items()}
    with pytest.raises(StructureError, match=r"'_orig_mod\.'"):
        following().load_state_dict(state)


def test_an_encoder_of_which_everything_was_dropped_is_rebuilt() -> None:
    model = classifier()
    nothing = tuple(
        MatrixPlan(layer, kind, linear.in_features, linear.out_features, (), (), 0.0)
        for (layer, kind), linear in find_encoder(model).linears()
    )
    apply_plan(model, PruningPlan("bert", nothing))
    fresh = following()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh), logits(model))


def test_loading_in_inference_mode_gives_the_same_outputs() -> None:
    model = pruned("bert", preset="paper")
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        fresh = following()
        with mode():
            fresh.load_state_dict(model.state_dict())
        with torch.inference_mode():
            batch = batches(1)[0]
            assert torch.equal(fresh(**batch).logits, model(**batch).logits)


def test_a_matrix_without_entries_keeps_its_structure_under_a_non_strict_load() -> None:
    model, query = pruned("bert", preset="paper"), "bert.encoder.layer.1.attention.self.query."
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(query)}
    fresh = following()
    before = fresh.bert.encoder.layer[1].attention.self.query.weight.clone()
    fresh.load_state_dict(state, strict=False)
    assert torch.equal(fresh.bert.encoder.layer[1].attention.self.query.weight, before)


@pytest.mark.parametrize("grouped", [True, False])
def test_an_encoder_without_entries_is_left_to_torch(grouped: bool) -> None:
    model = following(model_type="roberta")
    state = (pruned("bert") if grouped else classifier()).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"roberta\.encoder\.layer\.0"):
        model.load_state_dict(state)
    missing, _ = model.load_state_dict(state, strict=False)
    assert "roberta.encoder.layer.0.output.dense.weight" in missing
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert re.search(r"'roberta\.encoder\.layer'.*strict_loading=False", find_missing_encoder(model, state) or "")
    assert find_missing_encoder(model, model.state_dict()) is None


@pytest.mark.parametrize("depth", [2, 4])
def test_a_dense_state_dict_of_another_depth_loads_as_torch_loads_it(depth: int) -> None:
    model, state = following(layers=depth), classifier(layers=3, seed=4).state_dict()
    with pytest.raises(RuntimeError, match=r"encoder\.layer\.\d"):
        model.load_state_dict(state)
    model.load_state_dict(state, strict=False)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if name in state)


class TwoEncoders(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.student = classifier(seed=seed)
        self.teacher = classifier("distilbert", seed=seed)
        self.head = nn.Linear(2, 2)
        follow_state_dict(self)


def test_of_two_encoders_the_pruned_one_is_rebuilt() -> None:
    module = TwoEncoders()
    prune(module.student, batches(), PruningConfig.from_preset("paper"))
    fresh = TwoEncoders(seed=1)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(logits(fresh.student), logits(module.student))
    assert torch.equal(logits(fresh.teacher), logits(module.teacher))


@pytest.mark.parametrize("extra", [{}, {"foreign.weight": torch.zeros(3)}])
def test_an_encoder_that_a_file_leaves_out_stays_as_it_is(extra: dict[str, torch.Tensor]) -> None:
    module = TwoEncoders()
    prune(module.student, batches(), PruningConfig.from_preset("paper"))
    state = {name: value for name, value in module.state_dict().items() if not name.startswith("teacher.")} | extra
    fresh = TwoEncoders(seed=1)
    teacher = logits(fresh.teacher)
    fresh.load_state_dict(state, strict=False)
    assert torch.equal(logits(fresh.student), logits(module.student))
    assert torch.equal(logits(fresh.teacher), teacher)
    with pytest.raises(RuntimeError, match=r"teacher\."):
        TwoEncoders().load_state_dict(state)


@pytest.mark.parametrize("chosen", [("head.",), ("layer.1.attention.self.query.weight",), ("student.bert.embeddings",)])
def test_part_of_a_file_with_foreign_entries_is_loaded_as_torch_loads_it(chosen: tuple[str, ...]) -> None:
    module, other = TwoEncoders(), TwoEncoders(seed=2)
    part = {name: value for name, value in other.state_dict().items() if any(key in name for key in chosen)}
    module.load_state_dict({**part, "foreign.weight": torch.zeros(3)}, strict=False)
    assert not is_pruned(find_encoder(module, "student"))
    assert all(torch.equal(module.state_dict()[name], value) for name, value in part.items())


def test_a_pruned_encoder_of_another_task_loads_without_its_head() -> None:
    """The usual transfer: all but the head, which has another number of labels."""
    state = {name: value for name, value in pruned("bert").state_dict().items() if not name.startswith("classifier")}
    fresh = following(num_labels=5)
    missing, unexpected = fresh.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["classifier.weight", "classifier.bias"], [])
    assert is_pruned(find_encoder(fresh))
