"""ALBERT: one set of weights that runs many times is calibrated, counted, fitted and planned once."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from helpers.heads import removing
from helpers.plans import random_plan
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

import pgb_lightning.compensation.repeated as repeated
from pgb_lightning import PruningConfig, apply_plan, dense_twin, prune
from pgb_lightning.calibration import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.compensation.errors import FitErrors
from pgb_lightning.compensation.fit import compensate
from pgb_lightning.config import Budget
from pgb_lightning.cost import dense_cost, encoder_cost
from pgb_lightning.distillation import Teacher, hidden_loss
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.latency import layers_runner
from pgb_lightning.model_calls import record_calls
from pgb_lightning.pruning import make_plan
from pgb_lightning.search import candidates as search
from pgb_lightning.search import costs
from pgb_lightning.shapes import Heads, Neurons

#: Settings: one group that runs three times, and two groups of which the first runs twice.
ONE: dict[str, int] = {"num_hidden_groups": 1}
TWO: dict[str, int] = {"num_hidden_groups": 2}


@pytest.fixture(params=[ONE, TWO], ids=["one group", "two groups"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model("albert", **request.param)


def test_groups_are_layers(model: Any) -> None:
    encoder = find_encoder(model)
    groups = model.config.num_hidden_groups
    assert len(encoder.layers) == groups
    assert list(encoder.order) == ([0, 0, 0] if groups == 1 else [0, 0, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_group_num": 2}, r"inner_group_num=2.*Only 1"),
        ({"num_hidden_groups": 4}, r"num_hidden_groups=4.*num_hidden_layers=3"),
    ],
)
def test_other_ways_to_share_weights_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(tiny_model("albert", **settings), [], PruningConfig(pruning_ratio=0.5))


def test_the_fisher_information_is_that_of_the_gradient_of_all_runs(model: Any) -> None:
    """Autograd adds the gradients of all uses of a weight before they are squared."""
    encoder, batches = find_encoder(model), tiny_batches(2, size=4)
    found = calibrate(encoder, batches, model_loss(model)).fisher
    expected = {key: torch.zeros_like(linear.weight.T) for key, linear in encoder.linears()}
    for sample in samples(batches):
        model.zero_grad()
        model(**sample).loss.backward()
        for key, linear in encoder.linears():
            assert linear.weight.grad is not None
            expected[key] += linear.weight.grad.T.square()
    for key, square in expected.items():
        torch.testing.assert_close(found[key], square / 8, rtol=1e-3, atol=1e-10)


def test_moments_are_those_of_all_runs(model: Any) -> None:
    encoder, batches = find_encoder(model), tiny_batches(2, size=4)
    found = calibrate(encoder, batches, model_loss(model), moments=True).moments
    assert found is not None
    keys = [key for key, _ in encoder.linears()]
    inputs: dict[tuple[int, str], list[Tensor]] = {key: [] for key in keys}
    gradients: dict[tuple[int, str], list[Tensor]] = {key: [] for key in keys}
    for sample in samples(batches):
        real = sample["attention_mask"].bool()
        calls: list[tuple[tuple[int, str], Tensor, Tensor]] = []
        handles = [
            linear.register_forward_hook(lambda _, args, out, key=key, calls=calls: calls.append((key, args[0], out)))
            for key, linear in encoder.linears()
        ]
        loss = model(**sample).loss
        for handle in handles:
            handle.remove()
        for (key, x, _), g in zip(calls, torch.autograd.grad(loss, [out for *_, out in calls]), strict=True):
            inputs[key].append(x[real].detach())
            gradients[key].append(g[real])
    for key, covariance in found.inputs.items():
        rows = torch.cat(inputs[key]).double()
        torch.testing.assert_close(covariance, rows.T.cov(correction=0), rtol=1e-3, atol=1e-5)
    for key, second in found.gradients.items():
        g = torch.cat(gradients[key]).double()
        should = (g.T @ g if second.dim() == 2 else g.square().sum(0)) / 8
        rounding = 1e-6 * float(should.abs().max())  # sums of single precision
        torch.testing.assert_close(second, should, rtol=1e-3, atol=rounding)


def samples(batches: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        for number in range(len(batch["labels"])):
            yield {name: value[number : number + 1] for name, value in batch.items()}


def test_parameters_count_once_and_flops_for_each_run(model: Any) -> None:
    model.set_attn_implementation("eager")  # torch does not count fused attention on the CPU
    encoder, length = find_encoder(model), 9
    pruned = find_encoder(copy.deepcopy(model))
    apply_plan(pruned, random_plan(encoder, random.Random(1), ("narrow",)))
    for each in (encoder, pruned):
        counted = encoder_cost(each, length)
        weights = sum(linear.weight.numel() for _, linear in each.linears())
        assert counted.parameters == weights
        run = layers_runner(each, batch_size=1, length=length)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        assert counted.flops == counter.get_total_flops()
    assert dense_cost(pruned, length) == dense_cost(encoder, length) == encoder_cost(encoder, length)


@pytest.mark.parametrize("budget", ["parameters", "flops", "latency"])
def test_the_cost_of_candidates_is_that_of_the_encoder(
    model: Any, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "measure_table", lambda *_, **__: lambda candidate: 1.0 + candidate.parameters)
    encoder, config = find_encoder(model), PruningConfig(pruning_ratio=0.5, budget=budget)
    statistics = calibrate(encoder, tiny_batches(2), model_loss(model), moments=True)
    options = search.list_candidates(encoder, statistics, config)
    assert [part[0].loss for part in options] == [0.0] * 2 * len(encoder.layers)
    cost = costs.candidate_cost(encoder, options, config)
    total = sum(cost(part[0]) for part in options)
    assert total == pytest.approx(costs.dense_total(encoder, config))
    if budget == "latency":
        once = [1.0 + part[0].parameters for part in options]
        assert total == pytest.approx(sum(once[2 * n] + once[2 * n + 1] for n in encoder.order))
    else:
        assert total == getattr(encoder_cost(encoder, config.latency_length), budget)


def errors_of_all_runs(dense: nn.Module, pruned: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """Return the squared error of the hidden states after all runs, at real tokens."""
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            states = [each(**batch, output_hidden_states=True).hidden_states[1:] for each in (dense, pruned)]
            real = batch["attention_mask"].bool()
            total += sum(float((a[real] - b[real]).square().sum()) for a, b in zip(*states, strict=True))
    return total


@pytest.mark.parametrize("seed", range(2))
def test_compensation_lowers_the_summed_error_of_all_runs(
    model: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once fitted to the dense model's inputs of all runs, and not worse once fitted to the pruned model's own."""
    encoder, batches = find_encoder(model), tiny_batches(8)
    statistics = calibrate(encoder, batches, model_loss(model))
    plan = random_plan(encoder, random.Random(seed), ("narrow",))
    plain = copy.deepcopy(model)
    apply_plan(plain, plan)
    found = [errors_of_all_runs(model, plain, batches)]
    for fits in (1, 2, 4):
        monkeypatch.setattr(repeated, "MAX_FITS", fits)
        refitted, errors = copy.deepcopy(model), FitErrors()
        compensate(find_encoder(refitted), plan, statistics.inputs, 1e-3, errors=errors)
        found.append(errors_of_all_runs(model, refitted, batches))
        assert len(errors.sublayers) == 2 * len(encoder.layers)
    plain_error, once, twice, often = found
    assert once < 0.7 * plain_error
    if len(encoder.layers) == 1:  # else a better first group may be followed by a worse second one
        assert often <= twice * (1 + 1e-5) <= once * (1 + 1e-4)


def test_an_untouched_group_keeps_its_weights(model: Any) -> None:
    encoder, batches = find_encoder(model), tiny_batches(4)
    statistics = calibrate(encoder, batches, model_loss(model))
    last = len(encoder.layers) - 1
    kept = copy.deepcopy(model)
    plan = removing(kept, {last: SUBLAYERS["ffn"]})
    errors = FitErrors()
    compensate(find_encoder(kept), plan, statistics.inputs, 1e-3, errors=errors)
    if last:
        assert errors.sublayers[0, "ffn"] == 0.0
        for (layer, kind), linear in encoder.linears():
            if layer < last:
                assert torch.equal(find_encoder(kept).matrix(layer, kind).weight, linear.weight)
    assert errors.sublayers[last, "ffn"] > 0


@pytest.mark.parametrize("preset", ["default", "balanced", "paper"])
def test_presets_and_everything_after_them(model: Any, preset: Any, tmp_path: Path) -> None:
    dense, pruned, batches = copy.deepcopy(model), model, tiny_batches(4)
    plan = prune(pruned, batches, PruningConfig.from_preset(preset, pruning_ratio=0.5))
    assert plan.num_layers == dense.config.num_hidden_groups
    assert abs(plan.pruning_ratio - 0.5) < 0.03
    outputs = tiny_logits(pruned)
    torch.testing.assert_close(tiny_logits(dense_twin(pruned)), outputs, rtol=0, atol=1e-4)
    pruned.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(tiny_logits(loaded), outputs, rtol=0, atol=0)


def test_a_search_for_groups_that_cannot_reach_the_ratio_says_so() -> None:
    with pytest.raises(ValueError, match=r"pruning_ratio=0\.99"):
        prune(tiny_model("albert", **ONE), tiny_batches(2), PruningConfig.from_preset("paper", pruning_ratio=0.99))


def test_further_pruning(model: Any) -> None:
    encoder, batches = find_encoder(model), tiny_batches(4)
    statistics = calibrate(encoder, batches, model_loss(model), moments=True)
    config = PruningConfig(pruning_ratio=0.3)
    options = search.list_candidates(encoder, statistics, config)
    narrow = [[one for one in part if isinstance(one.shape, (Heads, Neurons))] for part in options]
    apply_plan(encoder, make_plan(encoder, statistics, config, narrow))
    plan = prune(model, batches, PruningConfig(pruning_ratio=0.6))
    assert plan.dense_sizes == {"attention": 48, "ffn": 96}
    found = find_encoder(model)
    assert encoder_cost(found).parameters / dense_cost(found).parameters == pytest.approx(0.4, abs=0.03)
    torch.testing.assert_close(tiny_logits(dense_twin(model)), tiny_logits(model), rtol=0, atol=1e-4)


def test_outputs_of_every_run(model: Any) -> None:
    """Hidden states and attention weights have an entry for each run, also where attention was dropped."""
    eager = tiny_model("albert", attn_implementation="eager", num_hidden_groups=model.config.num_hidden_groups)
    last = len(find_encoder(eager).layers) - 1
    apply_plan(eager, removing(eager, {last: SUBLAYERS["attention"]}))
    batch = tiny_batches(1)[0]
    with torch.no_grad():
        output = eager(**batch, output_attentions=True, output_hidden_states=True)
        listed = eager(**batch, output_attentions=True, output_hidden_states=True, return_dict=False)
    assert len(output.hidden_states) == 4
    dropped = [number == last for number in find_encoder(eager).order]
    for attentions in (output.attentions, listed[-1]):
        assert [weights is None for weights in attentions] == dropped


def test_distillation_compares_the_states_of_all_runs(model: Any) -> None:
    teacher, batch = Teacher(copy.deepcopy(model)), tiny_batches(1)[0]
    prune(model, tiny_batches(4), PruningConfig(pruning_ratio=0.5))
    with record_calls(model) as calls:
        model(**batch)
    target = teacher.run(calls[0])
    assert len(calls[0].hidden) == len(target.hidden) == 3
    real = batch["attention_mask"].bool()
    expected = [
        (own[real] - dense[real]).square().sum() / dense[real].square().sum()
        for own, dense in zip(calls[0].hidden, target.hidden, strict=True)
    ]
    torch.testing.assert_close(hidden_loss(calls[0], target), torch.stack(expected).mean())
