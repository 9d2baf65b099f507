"""The latency table: which shapes are told apart, what is kept on disk, and that nothing is left changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier
from test_candidates import candidates_of, statistics_of

from pgb_lightning import PruningConfig
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import carry_out, make_plan
from pgb_lightning.search import latency_table, speedup
from pgb_lightning.search.candidates import Candidate
from pgb_lightning.search.costs import candidate_cost, candidate_flops
from pgb_lightning.search.latency_table import cache_folder, measure_encoder, measure_table, shape_key


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_shape_is_measured_once_and_kept(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier(model_type, layers=2)
    encoder, found = find_encoder(model), candidates_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = measure_table(encoder, found, 1, 8, tmp_path)
    assert all(table(candidate) > 0 for options in found for candidate in options)
    assert len(table.seconds) == len({shape_key(candidate, 12) for options in found for candidate in options})
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    [path] = tmp_path.glob("*.json")
    assert json.loads(path.read_text()) == table.seconds

    def never(*_: object) -> float:
        raise AssertionError("everything was measured before")

    monkeypatch.setattr(latency_table, "_time_candidate", never)
    assert measure_table(encoder, found, 1, 8, tmp_path) == table
    with pytest.raises(AssertionError, match="measured before"):
        measure_table(encoder, found, 2, 8, tmp_path)  # another batch size is another table


def test_a_shape_is_its_blocks_and_what_must_be_moved() -> None:
    attention, ffn = candidates_of(classifier(layers=1))
    shapes = {candidate.shape: shape_key(candidate, 12) for candidate in (*attention, *ffn)}
    assert shapes["whole"] == "attention: 24x24, 24x24, 24x24, 24x24"
    assert shapes["1 heads"] == "attention: 24x12, 24x12, 24x12, 12x24"
    assert shapes["48 neurons"] == "ffn: 24x48, 48x24"
    assert shapes["48 neurons in 1 and 4 groups"].startswith("ffn: 24x48, 4x12x6")
    assert shapes["96 neurons in 6 and 2 groups"].startswith("ffn: <6x4x16, ")
    assert shapes["dropped"] in ("attention: -, -, -, -", "ffn: -, -")


def test_tables_lie_where_caches_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pgb_lightning" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "pgb_lightning" / "latency"


@pytest.mark.parametrize("budget", ["flops", "latency"])
def test_a_plan_meets_its_budget(budget: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # A clock that counts weights, so that the test does not depend on the machine's.
    monkeypatch.setattr(latency_table, "_time_candidate", lambda _, candidate, __: 1e-9 * (candidate.parameters + 50))
    monkeypatch.setattr(speedup, "measure_kept_time", lambda _, plan, *__: 1 - plan.pruning_ratio)
    model = classifier(layers=3)
    encoder, data = find_encoder(model), batches(6)
    config = PruningConfig(pruning_ratio=0.5, budget=budget, latency_length=9)  # type: ignore[arg-type]
    statistics = statistics_of(model, data)
    before = encoder_cost(encoder, 9).flops
    plan = make_plan(encoder, statistics, config)
    carry_out(encoder, plan, statistics, config)
    if budget == "flops":
        assert abs(encoder_cost(encoder, 9).flops / before - 0.5) < 0.02
    else:
        assert abs(plan.pruning_ratio - 0.5) < 0.03
    assert measure_encoder(encoder, 1, 4) > 0


def test_flops_are_those_that_the_modules_cost() -> None:
    model = classifier(layers=1)
    found = candidates_of(model)
    flops = sum(candidate_flops(options[0], 12, 9) for options in found)
    assert flops == encoder_cost(find_encoder(model), 9).flops
    by_weights = candidate_cost(find_encoder(model), found, PruningConfig())
    assert sum(by_weights(options[0]) for options in found) == encoder_cost(find_encoder(model)).parameters


def test_a_shape_that_is_not_faster_than_the_dense_one_is_never_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def clock(_: object, candidate: Candidate, __: object) -> float:
        if candidate.sublayer == "attention":
            return 1.0 if candidate.shape == "whole" else 1.5  # whatever is done to attention makes it slower
        return float(candidate.parameters)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency_table, "_time_candidate", clock)
    monkeypatch.setattr(speedup, "measure_kept_time", lambda *_: 1 / 1.5)
    model = classifier(layers=3)
    config = PruningConfig(target_speedup=1.5)
    plan = make_plan(find_encoder(model), statistics_of(model, batches(6)), config)
    assert all(plan.matrix(layer, kind).kept_share == 1 for layer in range(3) for kind in "QKVO")
    assert plan.pruning_ratio > 0.1
