"""The numbers of a report are those of the plan."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from helpers.kinds import MATRICES, SUBLAYERS

from pgb_lightning.config import PRESETS
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.report import Facts
from pgb_lightning.report.summary import block_size, predicted_error, split_removed, summarize

Make = Callable[..., tuple[PruningPlan, Facts]]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_split_adds_up(preset: str, plan_and_facts: Make) -> None:
    plan, _ = plan_and_facts(preset)
    split = split_removed(plan)
    assert set(split) == set(SUBLAYERS)
    assert sum(part.points for part in split.values()) == pytest.approx(100 * plan.pruning_ratio)
    assert sum(part.fraction for part in split.values()) == pytest.approx(1)
    assert sum(part.kept for part in split.values()) == plan.kept_parameters
    attention = [m for m in plan.matrices if m.kind in SUBLAYERS["attention"]]
    assert split["attention"].kept_share == sum(m.kept_parameters for m in attention) / (4 * 24 * 24 * plan.num_layers)


def test_the_split_of_a_dense_plan_is_zero() -> None:
    dense = PruningPlan("bert", tuple(MatrixPlan(0, kind, 8, 8, None, None) for kind in MATRICES))
    assert [(part.points, part.fraction) for part in split_removed(dense).values()] == [(0, 0), (0, 0)]
    assert predicted_error(dense, 0, "ffn") is None


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_summary_holds_the_numbers_of_the_plan(preset: str, plan_and_facts: Make) -> None:
    plan, facts = plan_and_facts(preset)
    found = json.loads(json.dumps(summarize(plan, facts)))
    assert found["pruning_ratio"] == plan.pruning_ratio
    assert found["settings"]["permutation"] == plan.config["permutation"]
    assert len(found["matrices"]) == len(plan.matrices)
    for entry, matrix in zip(found["matrices"], plan.matrices, strict=True):
        assert (entry["layer"], entry["kind"]) == (matrix.layer, matrix.kind)
        for name in ("num_groups", "kept_share", "kept_parameters", "importance_kept", "predicted_error"):
            assert entry[name] == getattr(matrix, name)
        assert entry["num_groups"] * entry["block"][0] * entry["block"][1] == matrix.kept_parameters
        assert entry["measured_error"] == facts.matrix_errors[f"{matrix.layer}.{matrix.kind}"]
    for entry in found["sublayers"]:
        kinds = SUBLAYERS[entry["sublayer"]]
        matrices = [plan.matrix(entry["layer"], kind) for kind in kinds]
        assert entry["kept_parameters"] == sum(m.kept_parameters for m in matrices)
        assert entry["predicted_error"] == pytest.approx(sum(m.predicted_error or 0 for m in matrices))
        assert entry["measured_error"] == facts.sublayer_errors[f"{entry['layer']}.{entry['sublayer']}"]
    assert found["latency"][0]["speedup"] == pytest.approx(2)
    assert found["scores"]["pruned"] == {}


def test_missing_measurements_are_none(plan_and_facts: Make) -> None:
    plan, _ = plan_and_facts()
    found = summarize(plan, Facts())
    assert {entry["measured_error"] for entry in found["matrices"] + found["sublayers"]} == {None}
    assert found["latency"] == []


def test_block_size() -> None:
    assert block_size(MatrixPlan(0, "Q", 8, 6, None, None)) == (8, 6)
    assert block_size(MatrixPlan(0, "Q", 8, 6, (), ())) == (0, 0)
    assert block_size(MatrixPlan(0, "Q", 8, 6, ((0, 1, 2),), ((5,),))) == (3, 1)
