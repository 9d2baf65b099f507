"""Keys and values with fewer heads than queries, and heads whose width is not hidden_size / num_attention_heads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from torch import Tensor, nn

from pgb_lightning import (
    ConstantLinear,
    MatrixPlan,
    PruningConfig,
    PruningPlan,
    apply_plan,
    dense_twin,
    follow_state_dict,
    prune,
)
from pgb_lightning.calibration import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.cost import Cost, dense_cost, encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.prediction.elimination import unit_indices
from pgb_lightning.search.candidates import Candidate, list_candidates
from pgb_lightning.shapes import Groups, Heads
from pgb_lightning.surgery import StructureError, matches

#: Heads of keys and values, of 4 query heads, and the width of a head; hidden_size / num_attention_heads is 12.
LAYOUTS = [(4, 12), (4, 24), (2, 12), (2, 24), (2, 8), (1, 12), (1, 24)]


def grouped(keys: int = 2, width: int = 24, **settings: Any) -> Any:
    return tiny_model("eurobert", num_key_value_heads=keys, head_dim=width, **settings)


def copied(model: nn.Module) -> Any:
    return copy.deepcopy(model)


@torch.no_grad()
def zeroed(model: Any, plan: PruningPlan) -> Any:
    """Return a dense copy of a model with zeros where a plan keeps no weights."""
    dense = copied(model)
    encoder = find_encoder(dense)
    for matrix in plan.matrices:
        kept = torch.zeros(matrix.rows, matrix.columns)
        if matrix.input_index is None or matrix.output_index is None:
            kept += 1
        else:
            for rows, columns in zip(matrix.input_index, matrix.output_index, strict=True):
                kept[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1
        encoder.matrix(matrix.layer, matrix.kind).weight.mul_(kept.T)
    return dense


def plan_of(encoder: Encoder, chosen: dict[tuple[int, str], MatrixPlan]) -> PruningPlan:
    """Return a plan with some matrices as given, and all others dense."""
    matrices = [
        chosen.get(key, MatrixPlan(*key, linear.in_features, linear.out_features, None, None))
        for key, linear in encoder.linears()
    ]
    return PruningPlan(encoder.model_type, tuple(matrices))


def keep_heads(encoder: Encoder, heads: dict[int, list[int]]) -> PruningPlan:
    """Return a plan that keeps some heads of keys and values of each layer, with all of their queries."""
    chosen = {}
    for (layer, kind), linear in encoder.linears():
        if kind in ("W1", "W3", "W2"):
            continue
        width = encoder.head_size if kind in ("K", "V") else encoder.head_size * encoder.queries_per_key
        inner = tuple(unit_indices(torch.tensor(heads[layer]), width).tolist())
        rows, columns = (tuple(range(size)) for size in (linear.in_features, linear.out_features))
        sides = (inner, columns) if kind == "O" else (rows, inner)
        index = tuple((side,) for side in sides)
        chosen[layer, kind] = MatrixPlan(layer, kind, linear.in_features, linear.out_features, *index)
    return plan_of(encoder, chosen)


def candidates(model: Any) -> list[Candidate]:
    """Return the candidates of the attention of the first layer."""
    encoder = find_encoder(model)
    statistics = calibrate(encoder, tiny_batches(3), model_loss(model), moments=True)
    return list_candidates(encoder, statistics, PruningConfig(pruning_ratio=0.5))[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("keys", "width"), LAYOUTS)
def test_narrowing_equals_zeroing(keys: int, width: int, attention: str) -> None:
    model = grouped(keys, width, attn_implementation=attention)
    encoder, before = find_encoder(model), tiny_logits(model)
    assert encoder.queries_per_key == 4 // keys
    assert encoder.head_group == width * 4 // keys
    plan = keep_heads(encoder, {0: [0, keys - 1] if keys > 2 else [0], 1: [keys - 1]})
    expected = tiny_logits(zeroed(model, plan))
    apply_plan(model, plan)
    torch.testing.assert_close(tiny_logits(model), expected, rtol=1e-5, atol=1e-5)
    assert keys == 1 or not torch.allclose(expected, before, atol=1e-2)
    assert encoder.matrix(1, "K").out_features == encoder.matrix(1, "V").out_features == width
    assert encoder.matrix(1, "Q").out_features == encoder.matrix(1, "O").in_features == width * 4 // keys
    assert matches(encoder, plan)


def test_query_heads_that_share_keys_stay_together() -> None:
    """A plan that reads only one of two query heads keeps both, as transformers repeats each head of keys equally."""
    model = grouped()
    encoder = find_encoder(model)
    rows, columns = tuple(range(24)), tuple(range(48))
    plan = plan_of(encoder, {(0, "O"): MatrixPlan(0, "O", 96, 48, (rows,), (columns,))})
    expected = tiny_logits(zeroed(model, plan))
    apply_plan(model, plan)
    torch.testing.assert_close(tiny_logits(model), expected, rtol=1e-5, atol=1e-5)
    assert encoder.matrix(0, "Q").out_features == 48
    assert encoder.matrix(0, "K").out_features == encoder.matrix(0, "V").out_features == 24


@pytest.mark.parametrize(("keys", "width"), [(2, 24), (1, 12), (2, 8)])
def test_every_candidate_is_what_it_says(keys: int, width: int) -> None:
    """Q and K have different widths, so their group numbers are those that divide both."""
    model = grouped(keys, width)
    found = candidates(model)
    encoder = find_encoder(model)
    assert [c.shape for c in found if isinstance(c.shape, Heads)] == [Heads(n) for n in range(keys, 0, -1)]
    split = [c for c in found if isinstance(c.shape, Groups)]
    for candidate in split:
        q, k, v, o = candidate.matrices
        assert (q.columns, k.columns, v.columns, o.rows) == (4 * width, keys * width, keys * width, 4 * width)
        assert q.num_groups == k.num_groups
    assert {c.matrices[0].num_groups for c in split} >= {0, 1, 2}
    for candidate in [*found[:3], *split[::11], split[-1]]:
        plan = plan_of(encoder, {(0, matrix.kind): matrix for matrix in candidate.matrices})
        pruned = copied(model)
        apply_plan(pruned, plan)
        torch.testing.assert_close(tiny_logits(pruned), tiny_logits(zeroed(model, plan)), rtol=1e-4, atol=1e-4)
        left = encoder_cost(find_encoder(pruned)).parameters
        assert left == encoder_cost(encoder).parameters - found[0].parameters + candidate.parameters


@pytest.mark.parametrize("biased", [False, True])
def test_without_biases_queries_and_keys_are_removed_together(biased: bool) -> None:
    """If either of them is zero, so are all scores, whatever the other one is."""
    model = grouped(attention_bias=biased)
    found = candidates(model)
    numbers = {c.shape.numbers[:2] for c in found if isinstance(c.shape, Groups) and 0 in c.shape.numbers[:2]}
    assert numbers == ({(0, 0), (0, 1), (1, 0)} if biased else {(0, 0)})
    encoder = find_encoder(model)
    outputs = []
    for removed in (("Q",), ("K",), ("Q", "K")):
        sizes = {kind: encoder.matrix_size(kind, 96) for kind in removed}
        plan = plan_of(encoder, {(0, kind): MatrixPlan(0, kind, *sizes[kind], (), ()) for kind in removed})
        pruned = copied(model)
        apply_plan(pruned, plan)
        constant = find_encoder(pruned).matrix(0, removed[-1])
        assert isinstance(constant, ConstantLinear)
        assert constant.out_features == (48 if "K" in removed else 96)
        outputs.append(tiny_logits(pruned))
        torch.testing.assert_close(outputs[-1], tiny_logits(zeroed(model, plan)), rtol=1e-5, atol=1e-5)
        check_copies(pruned, lambda: grouped(attention_bias=biased, seed=3))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6) == (not biased)


def check_copies(pruned: Any, build: Any) -> None:
    """A twin, and another model that loads the state dict, compute what a pruned model computes."""
    expected = tiny_logits(pruned)
    torch.testing.assert_close(tiny_logits(dense_twin(pruned)), expected, rtol=1e-5, atol=1e-5)
    other = build()
    follow_state_dict(other)
    other.load_state_dict(pruned.state_dict())
    assert torch.equal(tiny_logits(other), expected)


@pytest.mark.parametrize("preset", ["default", "balanced", "paper"])
@pytest.mark.parametrize(("keys", "width"), [(2, 24), (1, 12)])
def test_presets_without_compensation_only_set_weights_to_zero(keys: int, width: int, preset: str) -> None:
    model = grouped(keys, width)
    dense, build = copied(model), lambda: grouped(keys, width, seed=3)
    config = PruningConfig.from_preset(preset, pruning_ratio=0.6, compensation=False)
    plan = prune(model, tiny_batches(3), config)
    assert plan.pruning_ratio == pytest.approx(0.6, abs=0.015)
    torch.testing.assert_close(tiny_logits(model), tiny_logits(zeroed(dense, plan)), rtol=1e-4, atol=1e-4)
    check_copies(model, build)


@pytest.mark.parametrize(("keys", "width"), [(2, 24), (4, 8)])
def test_pruning_further_counts_from_the_dense_encoder(keys: int, width: int, tmp_path: Any) -> None:
    model = grouped(keys, width, num_hidden_layers=3)
    again = copied(model)
    encoder, batches = find_encoder(model), tiny_batches(4)
    inner = 4 * width
    dense = 3 * (2 * 48 * inner + 2 * 48 * keys * width + 3 * 48 * 96)
    plans = []
    for ratio in (0.3, 0.6):
        config = PruningConfig(pruning_ratio=ratio, budget="flops", latency_length=8)
        plan = prune(model, batches, config)
        plan.save(tmp_path / "plan.json")
        assert PruningPlan.load(tmp_path / "plan.json") == plan
        assert matches(encoder, plan)
        assert plan.total_parameters == dense == dense_cost(encoder).parameters
        assert plan.pruning_ratio == pytest.approx(1 - encoder_cost(encoder).parameters / dense)
        plans.append(PruningPlan.load(tmp_path / "plan.json"))
    assert plans[0].dense_sizes is None
    sizes = {"attention": inner, "ffn": 96} | ({"K": keys * width, "V": keys * width} if keys < 4 else {})
    assert plans[1].dense_sizes == sizes
    assert plans[0].pruning_ratio < plans[1].pruning_ratio
    with pytest.raises(ValueError, match="already pruned"):
        prune(model, batches, PruningConfig(pruning_ratio=0.3))
    for plan in plans:
        apply_plan(again, plan)
    assert matches(find_encoder(again), plans[1])


def test_cost_is_counted_by_hand() -> None:
    encoder = find_encoder(grouped())
    # Q and O: 48 x 96 each; K and V: 48 x 48 each; W1, W3 and W2: 48 x 96 each; two layers.
    weights = 2 * (2 * 48 * 96 + 2 * 48 * 48 + 3 * 48 * 96)
    # Scores and their product with V: 4 query heads of 24 features; 10 tokens.
    flops = 2 * 10 * weights + 2 * 2 * (2 * 10 * 10 * 96)
    assert encoder_cost(encoder, length=10) == dense_cost(encoder, length=10) == Cost(weights, flops)
    apply_plan(encoder, keep_heads(encoder, {0: [1], 1: [0, 1]}))
    weights -= 2 * 48 * 48 + 2 * 48 * 24
    flops = 2 * 10 * weights + 2 * (2 * 10 * 10 * 48) + 2 * (2 * 10 * 10 * 96)
    assert encoder_cost(encoder, length=10) == Cost(weights, flops)


def test_a_checkpoint_with_another_number_of_keys_is_refused() -> None:
    model = grouped(2)
    follow_state_dict(model)
    before = copied(model).state_dict()
    with pytest.raises(StructureError, match=r"layers\.0\.self_attn\.k_proj"):
        model.load_state_dict(grouped(4).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    model = grouped()
    prune(model, tiny_batches(3), PruningConfig(pruning_ratio=0.6))
    expected = tiny_logits(model)
    found: Tensor = tiny_logits(model.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    assert tiny_logits(dense_twin(model)).dtype == dtype


def test_a_layer_without_anything_left_has_a_twin() -> None:
    """Without biases, nothing is left of a layer of which both sublayers are dropped."""
    model = grouped()
    encoder = find_encoder(model)
    sizes = {key: (linear.in_features, linear.out_features) for key, linear in encoder.linears() if key[0] == 1}
    plan = plan_of(encoder, {key: MatrixPlan(*key, *size, (), ()) for key, size in sizes.items()})
    expected = tiny_logits(zeroed(model, plan))
    apply_plan(model, plan)
    torch.testing.assert_close(tiny_logits(model), expected, rtol=1e-5, atol=1e-5)
    check_copies(model, lambda: grouped(seed=3))
