"""Folding: the sublayer computes the same, and moves as little as it can."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers.kinds import MATRICES
from helpers.tiny import MODEL_TYPES, classifier, logits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pgb_lightning import MatrixPlan, PruningPlan, apply_plan, dense_twin, follow_state_dict
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.mpnet import MPNET
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.plan import Index
from pgb_lightning.surgery.apply import prune_linear
from pgb_lightning.surgery.checks import is_pruned, matches
from pgb_lightning.surgery.folding import fold

SHAPES = {"W1": (24, 96), "W2": (96, 24)}


def blocks(size: int, groups: int, of: int | None = None, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Cut some positions out of `of`, or all, into groups at random."""
    order = torch.randperm(of or size, generator=torch.Generator().manual_seed(seed))[:size]
    return tuple(map(tuple, order.view(groups, -1).tolist()))


def plan_of(model_type: str = "bert", layers: int = 1, **indices: tuple[Index, Index]) -> PruningPlan:
    """Make a plan in which every layer has these indices, and all other matrices whole."""
    matrices = [
        MatrixPlan(layer, kind, *SHAPES.get(kind, (24, 24)), *indices.get(kind, (None, None)))
        for layer in range(layers)
        for kind in MATRICES
    ]
    return PruningPlan(model_type, tuple(matrices))


def literally(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Carry out a plan as it stands, with nothing folded."""
    model = copy.deepcopy(model)
    encoder = find_encoder(model)
    for key, linear in list(encoder.linears()):
        encoder.set_matrix(*key, prune_linear(linear, plan.matrix(*key)))
    return model


everything = tuple(range(24))
heads = {"QKV": tuple(range(12, 24)), "O": tuple(range(12, 24))}
neurons = tuple(range(5, 96, 7))
PLANS = {
    "independent groups": {"W1": (blocks(24, 3), blocks(96, 3)), "W2": (blocks(96, 4, seed=1), blocks(24, 4))},
    "equal groups": {"W1": (blocks(24, 3), blocks(96, 3)), "W2": (blocks(96, 3)[::-1], blocks(24, 3))},
    "W1's groups within W2's": {"W1": (blocks(24, 4), blocks(96, 4)), "W2": (blocks(96, 2), blocks(24, 2))},
    "W2's groups within W1's": {"W1": (blocks(24, 2), blocks(96, 2)), "W2": (blocks(96, 4), blocks(24, 4))},
    "W1 alone": {"W1": (blocks(24, 3), blocks(96, 3))},
    "W2 alone": {"W2": (blocks(96, 3), blocks(24, 3))},
    "fewer neurons": {"W1": ((everything,), (neurons,)), "W2": ((neurons,), (everything,))},
    "fewer neurons, whole W1": {"W2": ((neurons,), (everything,))},
    "fewer neurons, then groups": {
        "W1": (blocks(24, 2), blocks(48, 2, of=96)),
        "W2": (blocks(48, 3, of=96), blocks(24, 3)),
    },
    "neurons that are read but not written": {"W1": ((everything,), (neurons,)), "W2": (blocks(96, 3), blocks(24, 3))},
    "one head": {
        **dict.fromkeys("QKV", ((everything,), (heads["QKV"],))),
        "O": ((heads["O"],), (everything,)),
    },
    "one head, whole Q": dict.fromkeys("KV", ((everything,), (heads["QKV"],))) | {"O": ((heads["O"],), (everything,))},
    "one head, no Q": {"Q": ((), ()), "O": ((heads["O"],), (everything,))},
    "part of a head": {"O": ((heads["O"][:5],), (everything,))},
    "one head under groups": {
        **{kind: (blocks(24, 3), blocks(24, 3)) for kind in "QKV"},
        "O": ((heads["O"],), (everything,)),
    },
    "groups of attention": {kind: (blocks(24, 3, seed=3), blocks(24, 3, seed=4)) for kind in "QKVO"},
    "fewer inputs": {"W1": ((everything[::2],), (tuple(range(96)),))},
}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("name", PLANS)
def test_the_folded_model_computes_what_the_plan_says(name: str, model_type: str) -> None:
    model = classifier(model_type, layers=2).double()
    plan = plan_of(model_type, 2, **PLANS[name])
    expected = logits(literally(model, plan))
    apply_plan(find_encoder(model), plan)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits(dense_twin(model)), expected, rtol=0, atol=1e-10)
    assert matches(find_encoder(model), plan)
    assert is_pruned(find_encoder(model)) == bool(PLANS[name])
    fresh = classifier(model_type, layers=2, seed=3).double()
    follow_state_dict(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh), logits(model))
    assert fresh.state_dict().keys() == model.state_dict().keys()


def moved(name: str) -> dict[str, tuple[bool, bool]]:
    """Tell of each grouped matrix whether its inputs and its outputs must be moved."""
    model = classifier(layers=1)
    apply_plan(find_encoder(model), plan_of(**PLANS[name]))
    found = {}
    for kind in MATRICES:
        module = find_encoder(model).matrix(0, kind)
        if isinstance(module, GroupedLinear):
            found[kind] = (
                module.input_index.flatten().tolist() != list(range(module.in_features)),
                module.output_index.flatten().tolist() != list(range(module.out_features)),
            )
    return found


@pytest.mark.parametrize("name", ["equal groups", "W1's groups within W2's", "W2's groups within W1's"])
def test_nothing_moves_between_nested_groups(name: str) -> None:
    assert moved(name) == {"W1": (True, False), "W2": (False, True)}


def test_one_move_is_left_between_independent_groups() -> None:
    assert moved("independent groups") == {"W1": (True, False), "W2": (True, True)}
    assert moved("W1 alone") == {"W1": (True, False)}
    assert moved("W2 alone") == {"W2": (False, True)}


@pytest.mark.parametrize(("name", "kinds", "width"), [("fewer neurons", ("W1", "W2"), 13), ("one head", "QKVO", 12)])
def test_neurons_and_heads_that_nobody_reads_are_gone(name: str, kinds: tuple[str, ...], width: int) -> None:
    model = classifier(layers=1)
    encoder = find_encoder(model)
    before = encoder_cost(encoder)
    apply_plan(encoder, plan_of(**PLANS[name]))
    for kind in kinds:
        module = encoder.matrix(0, kind)
        assert type(module) is nn.Linear
        inside = module.in_features if kind == kinds[-1] else module.out_features
        assert inside == width
    assert encoder_cost(encoder).parameters == plan_of(**PLANS[name]).kept_parameters < before.parameters


def test_a_constant_q_is_as_wide_as_the_heads_left() -> None:
    model = classifier(layers=1)
    apply_plan(find_encoder(model), plan_of(**PLANS["one head, no Q"]))
    module = find_encoder(model).matrix(0, "Q")
    assert isinstance(module, ConstantLinear)
    assert module.out_features == find_encoder(model).matrix(0, "V").out_features == 12


def test_heads_stay_where_the_model_needs_all() -> None:
    model = classifier("mpnet", layers=1)
    family = replace(MPNET, select_heads=None, head_counts=(), head_widths=(), needs_all_heads=True)
    encoder = replace(find_encoder(model), family=family)
    before = encoder_cost(encoder, 9)
    plan = plan_of("mpnet", **PLANS["one head"])
    apply_plan(encoder, plan)
    for kind in "QKVO":
        module = encoder.matrix(0, kind)
        assert isinstance(module, GroupedLinear)
        assert (module.in_features, module.out_features) == (24, 24)
        assert module.weight.shape == ((1, 12, 24) if kind == "O" else (1, 24, 12))
    cost = encoder_cost(encoder, 9)
    assert cost.parameters == plan.kept_parameters
    # Weights are gone, scores are not.
    assert before.flops - cost.flops == 2 * 9 * (before.parameters - cost.parameters)


@settings(max_examples=30, deadline=None)
@given(g1=st.sampled_from([1, 2, 3, 4, 6]), g2=st.sampled_from([1, 2, 3, 4, 6]), seed=st.integers(0, 99))
def test_a_folded_plan_is_a_plan_of_the_same_blocks(g1: int, g2: int, seed: int) -> None:
    plan = plan_of(
        W1=(blocks(24, g1, seed=seed), blocks(96, g1, seed=seed + 1)),
        W2=(blocks(96, g2, seed=seed + 2), blocks(24, g2, seed=seed + 3)),
    )
    folded = fold([plan.matrix(0, "W1"), plan.matrix(0, "W2")], "ffn", attention_unit=12)
    hidden = folded.hidden or tuple(range(96))
    assert sorted(hidden) == list(range(96))
    for kind, side in (("W1", "output_index"), ("W2", "input_index")):
        old, new = plan.matrix(0, kind), folded.matrices[kind]
        assert new.kept_parameters == old.kept_parameters
        index = getattr(new, side) or (tuple(range(96)),)
        assert {frozenset(hidden[n] for n in block) for block in index} == {
            frozenset(block) for block in getattr(old, side)
        }
