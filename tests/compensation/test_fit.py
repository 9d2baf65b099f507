"""Eq. 4: the closed form is a minimum, and layer by layer it helps the whole model."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from helpers.families import tiny_batches, tiny_model
from helpers.tiny import MODEL_TYPES, batches, classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgb_lightning import MatrixPlan, PruningConfig, PruningPlan, apply_plan, prune
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.calibration.moments import Moments
from pgb_lightning.compensation.fit import compensate
from pgb_lightning.compensation.least_squares import LeastSquares
from pgb_lightning.config import Ridge
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import make_plan
from pgb_lightning.surgery.checks import is_pruned, matches


def error(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, weight: Tensor) -> Tensor:
    """Return Eq. 4's error of blocks with the best bias."""
    product = torch.zeros_like(y)
    for r, c, block in zip(rows, columns, weight, strict=True):
        product[:, c] = x[:, r] @ block
    residual = y - product
    return (residual - residual.mean(0)).square().sum()


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tokens=st.integers(1, 60),
    ridge=st.sampled_from([1e-6, 1e-2, 1.0]),
    seed=st.integers(0, 999),
)
def test_it_never_raises_the_error(groups: int, block: tuple[int, int], tokens: int, ridge: float, seed: int) -> None:
    torch.manual_seed(seed)
    m, n = block
    x = torch.randn(tokens, groups * m, dtype=torch.float64) @ torch.randn(groups * m, groups * m).double() + 3
    y = x @ torch.randn(groups * m, groups * n).double() + torch.randn(tokens, groups * n).double()
    rows, columns = torch.randperm(groups * m).view(groups, m), torch.randperm(groups * n).view(groups, n)
    start = torch.randn(groups, m, n, dtype=torch.float64)
    moments = Moments(rows, columns, groups * m, groups * n)
    for part in x.split(7), y.split(7):
        assert len(part) == -(-tokens // 7)
    for x_part, y_part in zip(x.split(7), y.split(7), strict=True):
        moments.add(x_part.float(), y_part.float())
    moments.finish(lambda tensor: tensor)
    weight = LeastSquares(moments.gram, moments.cross, moments.power(rows)).solve(start, ridge)
    before, after = error(x, y, rows, columns, start), error(x, y, rows, columns, weight)
    assert after <= before * (1 + 1e-4) + 1e-6


def test_without_ridge_it_is_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 6, dtype=torch.float64) + 1, torch.randn(200, 4, dtype=torch.float64) - 2
    rows, columns = torch.tensor([[0, 3, 5], [1, 2, 4]]), torch.tensor([[3, 0], [1, 2]])
    moments = Moments(rows, columns, 6, 4)
    moments.add(x, y)
    moments.finish(lambda tensor: tensor)
    weight = LeastSquares(moments.gram, moments.cross, moments.power(rows)).solve(torch.zeros(2, 3, 2), ridge=1e-12)
    centered_x, centered_y = x - x.mean(0), y - y.mean(0)
    for block, r, c in zip(weight, rows, columns, strict=True):
        expected = torch.linalg.lstsq(centered_x[:, r], centered_y[:, c]).solution
        torch.testing.assert_close(block, expected, rtol=1e-4, atol=1e-5)  # products are summed in float32


def test_fewer_tokens_than_inputs_are_no_trouble() -> None:
    gram, cross, start = torch.zeros(1, 4, 4), torch.zeros(1, 4, 2), torch.ones(1, 4, 2)
    torch.testing.assert_close(LeastSquares(gram, cross, torch.zeros(1)).solve(start, ridge=0.01), start.double())


def test_inputs_that_do_not_vary_leave_the_weights_as_they_are() -> None:
    """Rounding errors of equal inputs must not be divided by their own squares."""
    torch.manual_seed(0)
    rows, columns = torch.arange(6).view(1, 6), torch.arange(4).view(1, 4)
    x = torch.randn(6).expand(40, 6) * (1 + 1e-7 * torch.randn(40, 6))
    moments = Moments(rows, columns, 6, 4)
    moments.add(x, torch.randn(40, 4))
    moments.finish(lambda tensor: tensor)
    start = torch.randn(1, 6, 4)
    for ridge in (1e-9, 1e-2):
        solved = LeastSquares(moments.gram, moments.cross, moments.power(rows)).solve(start, ridge)
        torch.testing.assert_close(solved, start.double(), rtol=0, atol=5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("ridge", ["auto", 1e-6])
@pytest.mark.parametrize("preset", ["balanced", "default"])
def test_a_single_calibration_sample_does_not_blow_up_the_weights(model_type: str, ridge: Ridge, preset: str) -> None:
    for seed in range(3):
        model = classifier(model_type, seed=seed)
        largest = max(float(p.detach().abs().max()) for p in model.parameters())
        config = PruningConfig.from_preset(preset, pruning_ratio=0.8, ridge=ridge, tolerance=0.1)
        prune(model, batches(1, size=1, seed=seed), config)
        assert max(float(p.detach().abs().max()) for p in model.parameters()) < 1e4 * largest


def pruned_twice(model_type: str, preset: str, ratio: float = 0.5):
    """Prune one model with and without compensation by the same plan; return logits on the calibration data."""
    dense = classifier(model_type)
    data = batches(8)
    statistics = calibrate(find_encoder(dense), data, lambda batch: dense(**batch).loss, moments=True)
    plan = make_plan(find_encoder(dense), statistics, PruningConfig.from_preset(preset, pruning_ratio=ratio))
    plain, compensated = copy.deepcopy(dense), copy.deepcopy(dense)
    apply_plan(find_encoder(plain), plan)
    compensate(find_encoder(compensated), plan, statistics.inputs, ridge=1e-2)
    with torch.no_grad():
        logits = [torch.cat([model(**b).logits for b in data]) for model in (dense, plain, compensated)]
    return plan, compensated, logits


@pytest.mark.parametrize(
    ("model_type", "preset"), [*((model_type, "default") for model_type in MODEL_TYPES), ("bert", "balanced")]
)
def test_compensation_brings_the_model_closer_to_the_dense_one(model_type: str, preset: str) -> None:
    plan, compensated, (dense, plain, after) = pruned_twice(model_type, preset)
    assert (after - dense).square().mean() < 0.5 * (plain - dense).square().mean()
    assert matches(find_encoder(compensated), plan)
    swapped = (*plan.matrices[6:12], *plan.matrices[:6], *plan.matrices[12:])
    other = replace(plan, matrices=tuple(replace(m, layer=i // 6) for i, m in enumerate(swapped)))
    assert not matches(find_encoder(compensated), other)


def test_a_dropped_sublayer_adds_the_mean_of_what_the_dense_one_added() -> None:
    dense = classifier(layers=1)
    encoder = find_encoder(dense)
    data = batches(4)
    statistics = calibrate(encoder, data, lambda batch: dense(**batch).loss, moments=True)
    plan = make_plan(encoder, statistics, PruningConfig.from_preset("balanced", pruning_ratio=8 / 12, max_groups=1))
    assert plan.is_dropped(0, "ffn")
    assert not plan.is_dropped(0, "attention")
    added: list[Tensor] = []
    twin = copy.deepcopy(dense)
    twin.bert.encoder.layer[0].output.dense.register_forward_hook(lambda m, args, out: added.append(out))
    for batch in data:
        twin(**batch)
    real = torch.cat([out[batch["attention_mask"].bool()] for out, batch in zip(added, data, strict=True)])
    compensate(encoder, plan, statistics.inputs, ridge=1e-2)
    constant = dense.bert.encoder.layer[0].output.dense.bias
    torch.testing.assert_close(constant, real.mean(0), rtol=1e-4, atol=1e-5)


def test_modes_survive_and_a_failure_leaves_the_model_as_it_was() -> None:
    model = classifier().train()
    model.bert.encoder.layer[1].eval()
    encoder = find_encoder(model)
    data = batches(4)
    statistics = calibrate(encoder, data, lambda batch: model(**batch).loss, moments=True)
    plan = make_plan(encoder, statistics, PruningConfig.from_preset("balanced"))
    before = copy.deepcopy(model.state_dict())

    def stop_at_layer_2(layers: range):
        for layer in layers:
            if layer == 2:
                raise KeyboardInterrupt
            yield layer

    with pytest.raises(KeyboardInterrupt):
        compensate(encoder, plan, statistics.inputs, 1e-2, track=stop_at_layer_2)
    assert not is_pruned(encoder)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    compensate(encoder, plan, statistics.inputs, 1e-2)
    assert is_pruned(encoder)
    assert all(module.training for module in model.bert.encoder.layer[0].modules())
    assert not any(module.training for module in model.bert.encoder.layer[1].modules())


@pytest.mark.parametrize(("path", "idle"), [("attention.self", "attention.self.query"), ("output", "output.dense")])
def test_a_layer_whose_copy_runs_the_layer_itself_is_refused(path: str, idle: str) -> None:
    model = classifier()
    owner = find_encoder(model).layers[1].get_submodule(path)
    own = owner.forward
    owner.forward = lambda *args, **kwargs: own(*args, **kwargs)
    state = model.state_dict()
    with pytest.raises(ValueError, match=rf"layer 1 .* {idle}\b.*compensation=False"):
        prune(model, batches())
    assert not is_pruned(find_encoder(model))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    prune(model, batches(), PruningConfig(compensation=False))
    assert is_pruned(find_encoder(model))


@pytest.mark.parametrize("model_type", ["modernbert", "deberta"])
def test_a_failure_leaves_no_parameter_frozen(model_type: str) -> None:
    """Sublayers that are dropped before the failure have norms and biases that are frozen with them."""
    model = tiny_model(model_type, num_hidden_layers=3)
    encoder = find_encoder(model)
    gone: tuple[tuple[int, ...], ...] = ()
    matrices = (
        replace(MatrixPlan(layer, kind, linear.in_features, linear.out_features, None, None), **dropped)
        for (layer, kind), linear in encoder.linears()
        for dropped in [{"input_index": gone, "output_index": gone} if layer == 1 else {}]
    )
    plan, frozen = PruningPlan(model_type, tuple(matrices)), next(model.parameters()).requires_grad_(False)
    statistics = calibrate(encoder, tiny_batches(1), lambda batch: model(**batch).loss)

    def fail(layers: Iterable[int]) -> Iterator[int]:
        yield from itertools.islice(layers, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compensate(encoder, plan, statistics.inputs, "auto", track=fail)
    assert not is_pruned(encoder)
    assert [parameter for parameter in model.parameters() if not parameter.requires_grad] == [frozen]
