"""Pruning a pruned model further: the target refers to the dense encoder."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.kinds import MATRICES
from helpers.tiny import MODEL_TYPES, batches, classifier, logits
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from pgb_lightning import MatrixPlan, PruningConfig, PruningPlan, apply_plan, dense_twin, follow_state_dict, prune
from pgb_lightning.cost import dense_cost, encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_huggingface
from pgb_lightning.report import Facts, plan_table, render, render_page
from pgb_lightning.report.layer_latency import count_flops
from pgb_lightning.report.summary import summarize
from pgb_lightning.search import latency_table, speedup
from pgb_lightning.search.candidates import Candidate
from pgb_lightning.surgery.checks import matches
from pgb_lightning.surgery.structure import Structure

#: Settings of a first pruning that leaves plain linear layers only.
PLAIN: dict[str, Any] = {"max_groups": 1}


def prune_by(model: PreTrainedModel, ratio: float, **settings: Any) -> PruningPlan:
    return prune(model, batches(6), PruningConfig(**{"pruning_ratio": ratio, **settings}))


def narrow(model_type: str = "bert", neurons: int = 48, heads: int = 2, dropped: int | None = None) -> PreTrainedModel:
    """Return a model with fewer neurons and heads, and one feed-forward sublayer less."""
    model = classifier(model_type)
    apply_plan(model, narrowing(model_type, neurons, heads, dropped))
    return model


def narrowing(model_type: str, neurons: int, heads: int, dropped: int | None) -> PruningPlan:
    everything, inside = tuple(range(24)), {"attention": tuple(range(12 * heads)), "ffn": tuple(range(neurons))}
    matrices = []
    for layer in range(3):
        for kind in MATRICES:
            name, closes = "ffn" if kind.startswith("W") else "attention", kind in ("O", "W2")
            index: tuple[Any, Any] = (inside[name],), (everything,)
            if name == "ffn" and layer == dropped:
                index = (), ()
            dense = 96 if name == "ffn" else 24
            rows, columns = (dense, 24) if closes else (24, dense)
            matrices.append(MatrixPlan(layer, kind, rows, columns, *(index if closes else index[::-1])))
    return PruningPlan(model_type, tuple(matrices))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("settings", [{}, {"budget": "flops"}, {"preset": "balanced"}])
def test_the_second_target_refers_to_the_dense_encoder(model_type: str, settings: dict[str, Any]) -> None:
    model = narrow(model_type)
    config = PruningConfig.from_preset(settings.pop("preset", "default"), pruning_ratio=0.7, **settings)
    before = encoder_cost(find_encoder(model), config.latency_length)
    plan = prune(model, batches(6), config)
    encoder = find_encoder(model)
    dense, left = dense_cost(encoder, config.latency_length), encoder_cost(encoder, config.latency_length)
    removed = 1 - (left.flops / dense.flops if config.budget == "flops" else left.parameters / dense.parameters)
    assert removed == pytest.approx(0.7, abs=0.02)
    assert plan.pruning_ratio == pytest.approx(1 - left.parameters / dense.parameters)
    assert plan.kept_parameters == left.parameters < before.parameters
    assert plan.dense_sizes == {"attention": 24, "ffn": 96}
    assert matches(encoder, plan)
    assert Structure.from_plan(encoder, plan) == Structure.of(encoder)
    twin = dense_twin(model)
    assert encoder_cost(find_encoder(twin)).parameters == dense.parameters
    torch.testing.assert_close(logits(twin), logits(model), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_30_percent_then_60_percent(model_type: str) -> None:
    stepwise, at_once = classifier(model_type), classifier(model_type)
    first = prune_by(stepwise, 0.3, **PLAIN)
    second = prune_by(stepwise, 0.6, **PLAIN)
    alone = prune_by(at_once, 0.6, **PLAIN)
    assert first.pruning_ratio == pytest.approx(0.3, abs=0.01)
    assert second.pruning_ratio == pytest.approx(alone.pruning_ratio, abs=0.01)

    def predicted(*plans: PruningPlan) -> float:
        return sum(matrix.predicted_error or 0.0 for plan in plans for matrix in plan.matrices)

    # Predictions of the two steps are of different losses; they add up to the same order of magnitude.
    assert 0.3 < predicted(first, second) / predicted(alone) < 3
    expected, found = logits(classifier(model_type)), logits(stepwise)
    assert (found - expected).square().mean() < 2 * expected.var()


def test_a_dropped_sublayer_stays_dropped() -> None:
    model = narrow(dropped=1)
    constant = model.bert.encoder.layer[1].output.dense.bias.clone()  # type: ignore[union-attr, operator, index]
    plan = prune_by(model, 0.75)
    assert [plan.is_dropped(layer, "ffn") for layer in range(3)].count(True) >= 1
    assert (plan.matrix(1, "W1").rows, plan.matrix(1, "W1").columns) == (24, 0)
    assert (plan.matrix(1, "W2").rows, plan.matrix(1, "W2").columns) == (0, 24)
    assert plan.matrix(1, "W1").kept_share == plan.kept_share(plan.matrix(1, "W1")) == 0
    assert torch.equal(model.bert.encoder.layer[1].output.dense.bias, constant)  # type: ignore[union-attr, operator, index]
    assert matches(find_encoder(model), plan)
    torch.testing.assert_close(logits(dense_twin(model)), logits(model), rtol=1e-4, atol=1e-5)


def test_compensation_brings_the_outputs_nearer_to_those_before() -> None:
    before = narrow(dropped=0)
    distances = []
    for compensation in (True, False):
        model = copy.deepcopy(before)
        prune_by(model, 0.65, compensation=compensation)
        distances.append(float((logits(model) - logits(before)).square().mean()))
    assert distances[0] < distances[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruning_ratio": 0.3}, r"already pruned: 0\.3333 .*weights.*pruning_ratio=0\.3\b"),
        ({"pruning_ratio": 0.336}, r"already pruned: 0\.3333 .*pruning_ratio=0\.336"),
        ({"pruning_ratio": 0.15, "budget": "flops"}, r"already pruned: 0\.17\d+ .*FLOPs.*pruning_ratio=0\.15"),
        ({"pruning_ratio": 0.3, "search": "groups"}, r"already pruned: 0\.3333"),
    ],
)
def test_a_target_that_is_reached_already_is_refused(settings: dict[str, Any], message: str) -> None:
    model = narrow()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        prune(model, [], PruningConfig(**settings))  # before data is read
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_cannot_be_pruned_further_is_refused() -> None:
    grouped = classifier()
    prune(grouped, batches(6), PruningConfig.from_preset("balanced"))
    with pytest.raises(ValueError, match=r"already pruned.*split into blocks.*dense"):
        prune_by(grouped, 0.8)
    without_query = classifier()
    plan = narrowing("bert", 96, 2, None)
    gone = [replace(m, input_index=(), output_index=()) if m.kind == "Q" else m for m in plan.matrices]
    apply_plan(without_query, replace(plan, matrices=tuple(gone)))
    with pytest.raises(ValueError, match=r"already pruned.*layer 0 Q is removed.*dense"):
        prune_by(without_query, 0.8)
    with pytest.raises(ValueError, match=r"search='groups'.*layer 1.*search='shapes'"):
        prune_by(narrow(dropped=1), 0.8, search="groups")
    with pytest.raises(ValueError, match=r"pruning_ratio=0\.99.*max_groups=2"):
        prune_by(narrow(), 0.99, search="groups", max_groups=2)
    everything = classifier()
    prune_by(everything, 0.999, tolerance=0.01)
    with pytest.raises(ValueError, match=r"already pruned: 1\.0000"):
        prune_by(everything, 0.9999, tolerance=0.01)


def test_the_plan_is_applied_to_the_same_pruned_encoder_and_to_nothing_else(tmp_path: Path) -> None:
    model = narrow(dropped=1)
    plan = prune_by(model, 0.7, compensation=False)
    plan.save(tmp_path / "plan.json")
    read = PruningPlan.load(tmp_path / "plan.json")
    assert read == plan
    again = narrow(dropped=1)
    apply_plan(again, read)
    assert torch.equal(logits(again), logits(model))
    for other in (classifier(), narrow(), narrow(neurons=36, dropped=1), narrow(dropped=0)):
        with pytest.raises(ValueError, match=r"the plan's matrix is"):
            apply_plan(other, read)
        assert not matches(find_encoder(other), read)
    wider = classifier(intermediate_size=192)
    with pytest.raises(ValueError, match=r"dense_sizes=.*96.*192"):
        apply_plan(wider, read)
    with pytest.raises(ValueError, match=r"already pruned.*dense"):
        apply_plan(narrow(), narrowing("bert", 24, 2, None))


def test_plans_of_dense_encoders_are_stored_as_before() -> None:
    plan = narrowing("bert", 48, 2, None)
    assert "dense_sizes" not in plan.to_dict()
    further = prune_by(narrow(), 0.7)
    plain = json.loads(further.to_json())
    assert plain["summary"]["pruning_ratio"] == further.pruning_ratio > 0.69
    for wrong in ({"ffn": 96}, {"attention": 24, "ffn": "96"}, [24, 96]):
        with pytest.raises(ValueError, match="dense_sizes="):
            PruningPlan.from_dict({**plain, "dense_sizes": wrong})
    entry = {**plain["matrices"][0], "columns": 0, "input_index": None, "output_index": None}
    with pytest.raises(ValueError, match=r"layer 0 Q.*24 x 0"):
        PruningPlan.from_dict({**plain, "matrices": [{**entry, "num_groups": 1}, *plain["matrices"][1:]]})


def test_the_state_dict_and_the_exported_folder_load(tmp_path: Path) -> None:
    model = narrow(dropped=1)
    plan = prune_by(model, 0.7)
    for target in (classifier(seed=3), narrow(neurons=96 - 12)):
        follow_state_dict(target)
        target.load_state_dict(model.state_dict())
        assert torch.equal(logits(target), logits(model))
        assert matches(find_encoder(target), plan)
    export_huggingface(model, tmp_path / "out", plan=plan)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))
    assert matches(find_encoder(loaded), PruningPlan.load(tmp_path / "out" / "plan.json"))


def test_reports_count_from_the_dense_encoder() -> None:
    model = narrow(dropped=1)
    encoder = find_encoder(model)
    dense = dense_cost(encoder)
    plan = prune_by(model, 0.75)
    facts = Facts(flops=count_flops(encoder))
    assert facts.flops["dense"] == dense.flops
    numbers = summarize(plan, facts)
    assert numbers["total_parameters"] == dense.parameters == encoder_cost(find_encoder(classifier())).parameters
    assert sum(part["total"] for part in numbers["split"].values()) == dense.parameters
    points = sum(part["points_of_the_cut"] for part in numbers["split"].values())
    assert points == pytest.approx(100 * plan.pruning_ratio)
    assert f"{plan.pruning_ratio:.1%}" in render(plan_table(plan))
    assert f"{dense.parameters:,}" in render_page(plan, facts)


def test_a_third_pruning() -> None:
    model = classifier("distilbert")
    ratios = [prune_by(model, ratio, **PLAIN).pruning_ratio for ratio in (0.2, 0.4, 0.7)]
    assert ratios == pytest.approx([0.2, 0.4, 0.7], abs=0.01)


def test_a_target_speedup_refers_to_the_dense_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With seconds that are proportional to weights, a speedup of 4 keeps a quarter of the dense encoder's weights."""

    def seconds(_: Any, candidates: list[Candidate], *__: Any) -> list[float]:
        return [candidate.parameters / 1e6 for candidate in candidates]

    def ratio(dense: Any, pruned: Any, *_: Any) -> float:
        return encoder_cost(pruned).parameters / encoder_cost(dense).parameters

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency_table, "_time_candidates", seconds)
    monkeypatch.setattr(speedup, "latency_ratio", ratio)
    monkeypatch.setattr("pgb_lightning.search.costs.latency_ratio", ratio)
    settings = {"latency_batch_size": 1, "latency_length": 8}
    model = narrow(dropped=1)
    plan = prune(model, batches(6), PruningConfig(target_speedup=4.0, **settings))
    assert plan.pruning_ratio == pytest.approx(0.75, abs=0.03)
    assert plan.dense_sizes is not None
    with pytest.raises(ValueError, match=r"already pruned: 0\.4\d+ .*time.*target_speedup=1\.5.*0\.3333"):
        prune(narrow(dropped=1), batches(6), PruningConfig(target_speedup=1.5, **settings))


@pytest.mark.slow
def test_a_measured_speedup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings: dict[str, Any] = {"target_speedup": 3.0, "latency_batch_size": 2, "latency_length": 32}
    model = narrow(dropped=1)
    plan = prune(model, batches(6), PruningConfig(**settings))
    assert matches(find_encoder(model), plan)
