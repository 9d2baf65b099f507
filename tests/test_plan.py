"""The plan: JSON and back, and the plans that are refused."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
from helpers.kinds import MATRICES
from hypothesis import given
from hypothesis import strategies as st

from pgb_lightning import MatrixPlan, PruningPlan
from pgb_lightning.encoders import family
from pgb_lightning.plan import SCHEMA_VERSION


def blocks(size: int, groups: int) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    def split(order: list[int]) -> tuple[tuple[int, ...], ...]:
        width = size // groups
        return tuple(tuple(order[g * width : (g + 1) * width]) for g in range(groups))

    return st.permutations(range(size)).map(split)


@st.composite
def plans(draw: st.DrawFn) -> PruningPlan:
    matrices = []
    for layer in range(draw(st.integers(1, 3))):
        dropped = {name: draw(st.booleans()) for name in ("attention", "ffn")}
        for kind in MATRICES:
            rows, columns = {"W1": (6, 12), "W2": (12, 6)}.get(kind, (6, 6))
            groups = 0 if dropped["ffn" if kind.startswith("W") else "attention"] else draw(st.sampled_from([1, 2, 3]))
            if groups == 1:
                index: tuple = (None, None)
            elif groups == 0:
                index = ((), ())
            else:
                index = draw(blocks(rows, groups)), draw(blocks(columns, groups))
            matrices.append(MatrixPlan(layer, kind, rows, columns, *index, draw(st.floats(0, 1))))
    return PruningPlan("bert", tuple(matrices), {"pruning_ratio": 0.5}, draw(st.integers(0, 10_000)))


@given(plans())
def test_plan_to_json_to_plan_is_identity(plan: PruningPlan) -> None:
    text = plan.to_json()
    assert PruningPlan.from_json(text) == plan
    assert PruningPlan.from_json(text).to_json() == text
    assert PruningPlan.from_dict(plan.to_dict()) == plan


@given(plans())
def test_counts_follow_from_the_blocks(plan: PruningPlan) -> None:
    expected = sum(m.rows * m.columns // m.num_groups for m in plan.matrices if m.num_groups)
    assert plan.kept_parameters == expected
    assert plan.pruning_ratio == pytest.approx(1 - expected / plan.total_parameters)
    for layer in range(plan.num_layers):
        assert plan.is_dropped(layer, "ffn") == (plan.matrix(layer, "W2").num_groups == 0)


def dense(layers: int = 1) -> list[MatrixPlan]:
    return [MatrixPlan(layer, kind, 4, 4, None, None) for layer in range(layers) for kind in MATRICES]


def test_the_file_is_readable_json_with_a_matrix_a_line(tmp_path: Path) -> None:
    plan = PruningPlan("bert", tuple(dense(2)))
    plan.save(tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert sum('"kind":"W1"' in line for line in lines) == 2
    assert json.loads("\n".join(lines))["schema_version"] == 1
    assert PruningPlan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (((0, 1), (1, 2)), ((0, 1), (2, 3)), "layer 0 Q: input_index lists a position twice"),
        (((0, 1), (2, 4)), ((0, 1), (2, 3)), r"input_index has a position outside 0\.\.3"),
        (((0, 1), (2, 3)), ((0,), (2, 3)), "output_index must have blocks of one size"),
        (((0, 1), (2, 3)), ((0, 1, 2, 3),), "2 blocks of rows but 1 of columns"),
        (None, ((0, 1), (2, 3)), "must both be given, or both be null"),
    ],
)
def test_invalid_blocks_are_refused(rows: object, columns: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixPlan(0, "Q", 4, 4, rows, columns)  # type: ignore[arg-type]


def test_a_dropped_sublayer_keeps_no_matrix_but_q_or_k_may_go_alone() -> None:
    matrices = dense()
    for gone in ("Q", "K"):
        matrices[MATRICES.index(gone)] = replace(matrices[MATRICES.index(gone)], input_index=(), output_index=())
    PruningPlan("bert", tuple(matrices))
    for gone, kept in (("V", "Q"), ("W1", "W2")):
        broken = dense()
        broken[MATRICES.index(gone)] = replace(broken[MATRICES.index(gone)], input_index=(), output_index=())
        with pytest.raises(ValueError, match=f"layer 0: {gone} .*{kept}"):
            PruningPlan("bert", tuple(broken))


def test_missing_layers_and_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices.* Q, K, V, O, W1, W2"):
        PruningPlan("bert", tuple(dense()[:-1]))
    with pytest.raises(ValueError, match="not a pruning plan: 'matrices'"):
        PruningPlan.from_dict({"weights": []})
    newer = json.loads(PruningPlan("bert", tuple(dense())).to_json())
    newer["schema_version"] = 99
    with pytest.raises(ValueError, match="schema_version=99"):
        PruningPlan.from_dict(newer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 0}, "schema_version=0.* 1"),
        ({"schema_version": 2, "novelty": 1}, "schema_version=2"),
        ({"fingerprnt": ""}, "'fingerprnt'.* model_type, matrices, "),
        ({"matrices": [{"layer": 0, "kind": "Q", "groups": 2}]}, "layer 0 Q .*'groups'"),
        ({"matrices": [{"layer": 0, "kind": "Q", "input_index": [["0"]], "output_index": []}]}, "0 Q: input_index "),
    ],
)
def test_other_versions_and_unknown_fields_are_named(change: dict[str, object], message: str) -> None:
    plain = PruningPlan("bert", tuple(dense())).to_dict()
    with pytest.raises(ValueError, match=message):
        PruningPlan.from_dict({**plain, **change})


def test_the_schema_in_the_docs_has_the_fields_that_are_written() -> None:
    schema = json.loads((Path(__file__).parents[1] / "docs" / "plan.schema.json").read_text())
    matrix = schema["$defs"]["matrix"]
    plain = PruningPlan("bert", tuple(dense())).to_dict()
    assert schema["properties"].keys() == {*plain, "dense_sizes"}  # which only plans for pruned encoders have
    assert matrix["properties"].keys() == plain["matrices"][0].keys()
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert matrix["properties"]["kind"]["enum"] == list(family.MATRICES)
    sizes = schema["properties"]["dense_sizes"]
    assert [*sizes["properties"]] == [*sizes["required"], *family.KEY_VALUE] == [*family.SUBLAYERS, "K", "V"]
    for record, required in {PruningPlan: schema["required"], MatrixPlan: matrix["required"]}.items():
        needed = {field.name for field in fields(record) if field.default is field.default_factory is MISSING}
        assert set(required) - {"schema_version"} == needed
    table = (Path(__file__).parents[1] / "docs" / "plan.md").read_text()
    assert all(f"`{name}`" in table for name in (*schema["properties"], *matrix["properties"]))


@pytest.mark.parametrize("keep", ["schema_version", "kind", "layer"])
def test_what_the_schema_requires_is_required(keep: str) -> None:
    plain = PruningPlan("bert", tuple(dense())).to_dict()
    (plain if keep in plain else plain["matrices"][0]).pop(keep)
    with pytest.raises(ValueError, match=f"not a pruning plan: .*'{keep}'"):
        PruningPlan.from_dict(plain)
