"""PruningConfig: presets, and one clear error for each bad setting."""

from __future__ import annotations

import json

import pytest

from pgb_lightning import PruningConfig
from pgb_lightning.config import PRESETS


def test_presets_differ_in_what_they_say() -> None:
    assert PruningConfig.from_preset("paper").permutation == "greedy"
    assert PruningConfig.from_preset("default").permutation == "balanced"
    assert [PruningConfig.from_preset(preset).search for preset in PRESETS] == ["shapes", "groups", "groups"]
    assert PruningConfig() == PruningConfig.from_preset("default")


def test_a_threshold_means_nothing_to_the_search_over_shapes() -> None:
    with pytest.raises(ValueError, match="importance_threshold=1e-05 means nothing to search='shapes'"):
        PruningConfig(importance_threshold=1e-5)
    assert PruningConfig.from_preset("balanced", importance_threshold=1e-5).importance_threshold == 1e-5


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_paper_s_table_a1_values(preset: str) -> None:
    config = PruningConfig.from_preset(preset)
    assert (config.max_groups, config.num_permutations) == (6, 6)


def test_overrides_replace_the_preset_and_none_keeps_it() -> None:
    config = PruningConfig.from_preset("paper", pruning_ratio=0.88, permutation=None, importance_threshold=1e-5)
    assert (config.pruning_ratio, config.permutation, config.importance_threshold) == (0.88, "greedy", 1e-5)


def test_to_dict_is_json() -> None:
    config = PruningConfig(pruning_ratio=0.3)
    assert PruningConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_a_speed_up_is_no_budget_of_flops() -> None:
    with pytest.raises(ValueError, match=r"target_speedup=2.0 budgets time, but budget='flops': leave one of the two"):
        PruningConfig(target_speedup=2.0, budget="flops")
    made = PruningConfig(target_speedup=2.0)
    assert PruningConfig(**made.to_dict()) == made  # what is read back has both


def test_groups_by_compensation_want_compensation() -> None:
    assert PruningConfig(permutation="compensated").needs_moments
    assert PruningConfig(search="groups", permutation="compensated").needs_moments
    assert not PruningConfig(search="groups").needs_moments
    with pytest.raises(ValueError, match=r"permutation='compensated' .* compensation=False: set it to True, or"):
        PruningConfig(permutation="compensated", compensation=False)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("pruning_ratio", 0.0, "pruning_ratio=0.0 is out of range: it must be strictly between 0 and 1"),
        ("pruning_ratio", 1.0, "pruning_ratio=1.0 is out of range"),
        ("pruning_ratio", float("nan"), "pruning_ratio=nan is out of range"),
        ("max_groups", 0, "max_groups=0 is out of range: it must be at least 1"),
        ("num_permutations", 0, "num_permutations=0 is out of range"),
        ("importance_threshold", -1e-5, "importance_threshold=-1e-05 is out of range: it must be above 0"),
        ("importance_threshold", float("inf"), "importance_threshold=inf is out of range"),
        ("ridge", 0.0, "ridge=0.0 is out of range"),
        ("tolerance", 1.5, "tolerance=1.5 is out of range"),
        ("search", "all", "search='all' is unknown; choose one of 'groups', 'shapes'"),
        ("permutation", "best", "permutation='best' is unknown; choose one of 'greedy', 'balanced'"),
    ],
)
def test_a_value_out_of_range_is_named(setting: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        PruningConfig(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("pruning_ratio", "half"), ("pruning_ratio", True), ("max_groups", 6.0), ("compensation", "yes")],
)
def test_a_value_of_the_wrong_type_is_named(setting: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{setting}={value!r} must be"):
        PruningConfig(**{setting: value})


def test_unknown_preset_and_setting_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="preset='best' is unknown; choose one of 'default', 'balanced', 'paper'"):
        PruningConfig.from_preset("best")
    with pytest.raises(TypeError, match=r"no setting 'ratio'; it has .*pruning_ratio"):
        PruningConfig.from_preset("paper", ratio=0.5)
