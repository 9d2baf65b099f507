"""PruningConfig: presets, and an error for each invalid setting."""

from __future__ import annotations

import json

import pytest

from pgb_lightning import PruningConfig
from pgb_lightning.config import PRESETS


def test_presets_differ_in_search_and_permutation() -> None:
    assert PruningConfig.from_preset("paper").permutation == "greedy"
    assert PruningConfig.from_preset("default").permutation == "balanced"
    assert [PruningConfig.from_preset(preset).search for preset in PRESETS] == ["shapes", "groups", "groups"]
    assert PruningConfig() == PruningConfig.from_preset("default")


def test_a_threshold_requires_the_search_over_groups() -> None:
    with pytest.raises(ValueError, match=r"importance_threshold=1e-05 .*search='shapes'"):
        PruningConfig(importance_threshold=1e-5)
    assert PruningConfig.from_preset("balanced", importance_threshold=1e-5).importance_threshold == 1e-5


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_values_of_table_a1(preset: str) -> None:
    config = PruningConfig.from_preset(preset)
    assert (config.max_groups, config.num_permutations) == (6, 6)


def test_overrides_replace_the_preset_and_none_keeps_it() -> None:
    config = PruningConfig.from_preset("paper", pruning_ratio=0.88, permutation=None, importance_threshold=1e-5)
    assert (config.pruning_ratio, config.permutation, config.importance_threshold) == (0.88, "greedy", 1e-5)


def test_to_dict_is_json() -> None:
    config = PruningConfig(pruning_ratio=0.3)
    assert PruningConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_a_target_speedup_excludes_a_budget_of_flops() -> None:
    with pytest.raises(ValueError, match=r"target_speedup=2\.0 .*budget='flops'"):
        PruningConfig(target_speedup=2.0, budget="flops")
    made = PruningConfig(target_speedup=2.0)
    assert PruningConfig(**made.to_dict()) == made  # the dictionary has both settings


def test_compensated_permutation_requires_compensation() -> None:
    assert PruningConfig(permutation="compensated").needs_moments
    assert PruningConfig(search="groups", permutation="compensated").needs_moments
    assert PruningConfig(search="groups").needs_moments
    assert not PruningConfig(search="groups", importance_threshold=1e-9).needs_moments
    with pytest.raises(ValueError, match=r"permutation='compensated' .*compensation=False"):
        PruningConfig(permutation="compensated", compensation=False)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("pruning_ratio", 0.0, "pruning_ratio=0.0 .* between 0 and 1"),
        ("pruning_ratio", 1.0, "pruning_ratio=1.0 "),
        ("pruning_ratio", float("nan"), "pruning_ratio=nan "),
        ("max_groups", 0, "max_groups=0 .*at least 1"),
        ("num_permutations", 0, "num_permutations=0 "),
        ("importance_threshold", -1e-5, "importance_threshold=-1e-05 .*above 0"),
        ("importance_threshold", float("inf"), "importance_threshold=inf "),
        ("ridge", 0.0, "ridge=0.0 "),
        ("tolerance", 1.5, "tolerance=1.5 "),
        ("search", "all", "search='all' .*'groups', 'shapes'"),
        ("permutation", "best", "permutation='best' .*'greedy', 'balanced'"),
    ],
)
def test_a_value_out_of_range_raises(setting: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningConfig(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("pruning_ratio", "half"), ("pruning_ratio", True), ("max_groups", 6.0), ("compensation", "yes")],
)
def test_a_value_of_the_wrong_type_raises(setting: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{setting}={value!r} "):
        PruningConfig(**{setting: value})


def test_unknown_preset_and_setting_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"preset='best' .*'default', 'balanced', 'paper'"):
        PruningConfig.from_preset("best")
    with pytest.raises(TypeError, match=r"'ratio'.*pruning_ratio"):
        PruningConfig.from_preset("paper", ratio=0.5)
