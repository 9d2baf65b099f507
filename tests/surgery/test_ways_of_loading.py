"""A pruned model computes what its plan says, however it was built, loaded, copied, moved or edited.

The expected outputs are those of the dense model with zeros for the weights that the plan removes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.pruned_models import MODES, Situation, assert_outputs, assert_same_entries, run
from helpers.tiny import MODEL_TYPES, batches
from helpers.ways_to_edit import WAYS, Called
from torch import nn

from pgb_lightning import PruningConfig, apply_plan, follow_state_dict, prune
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import matches
from pgb_lightning.surgery.dense_twin import dense_twin
from pgb_lightning.surgery.from_state_dict import StructureError

# The warnings of torch about a single process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def check(way: str, model_type: str, seed: int, folder: Path) -> None:
    case = Situation(model_type, seed)
    model = WAYS[way](case, folder)
    assert_outputs(model, case.expected)
    if isinstance(model, Called):
        return
    assert matches(find_encoder(model), case.plan) or way == "reordered_blocks"
    assert_outputs(dense_twin(model), case.expected)
    again = case.fresh(seed=7)
    again.load_state_dict(model.state_dict())
    assert_same_entries(again, model.state_dict())
    assert_outputs(again, case.expected)


@pytest.mark.parametrize("way", WAYS)
def test_outputs_are_those_of_the_plan(way: str, tmp_path: Path) -> None:
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        check(way, "bert", seed, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("way", WAYS)
def test_outputs_are_those_of_the_plan_in_every_family(way: str, model_type: str, tmp_path: Path) -> None:
    for seed in range(10, 13):
        (tmp_path / str(seed)).mkdir()
        check(way, model_type, seed, tmp_path / str(seed))


# ---- grad modes ----------------------------------------------------------------------------------------------


def check_modes(model_type: str, seed: int, built_in: str, loaded_in: str, assign: bool) -> None:
    case = Situation(model_type, seed)
    with MODES[built_in]():
        model = case.fresh()
        run(model)
    with MODES[loaded_in]():
        model.load_state_dict(copy.deepcopy(case.state()) if assign else case.state(), assign=assign)
    assert_outputs(model, case.expected)
    assert_same_entries(model, case.state())
    if built_in != "inference_mode" and (loaded_in != "inference_mode" or not assign):
        run(model).sum().backward()


#: Torch does not write to inference tensors outside of inference mode.
COMBINATIONS = [
    (built_in, loaded_in, assign)
    for built_in in MODES
    for loaded_in in MODES
    for assign in (False, True)
    if assign or built_in != "inference_mode" or loaded_in == "inference_mode"
]


@pytest.mark.parametrize(("built_in", "loaded_in", "assign"), COMBINATIONS)
def test_grad_modes_do_not_matter(built_in: str, loaded_in: str, assign: bool) -> None:
    check_modes("bert", 3, built_in, loaded_in, assign)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("built_in", "loaded_in", "assign"), COMBINATIONS)
def test_grad_modes_do_not_matter_in_any_family(built_in: str, loaded_in: str, assign: bool, model_type: str) -> None:
    for seed in range(20, 22):
        check_modes(model_type, seed, built_in, loaded_in, assign)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("applies", [True, False])
def test_pruning_in_any_grad_mode_is_right_or_refused(mode: str, applies: bool) -> None:
    """Calibration needs gradients, which inference mode forbids; a plan alone can be applied in any mode."""
    case = Situation("bert", 4)
    model, before = case.original, copy.deepcopy(case.original.state_dict())
    try:
        with MODES[mode]():
            if applies:
                apply_plan(model, case.plan)
            else:
                prune(model, batches(3), PruningConfig.from_preset("paper", pruning_ratio=0.5))
    except (ValueError, RuntimeError):
        assert not applies
        assert_same_entries(model, before)
    else:
        assert_outputs(model, case.expected if applies else dense_twin(model))


# ---- what cannot be right is refused, and nothing is changed -----------------------------------------------------


def assert_right_or_refused(case: Situation, model: nn.Module, load: Callable[[], object], expected: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    try:
        load()
    except StructureError:
        assert_same_entries(model, before)
    else:
        assert_outputs(model, expected)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_the_state_of_another_plan_is_right_or_refused(strict: bool, assign: bool) -> None:
    for seed in range(30, 36):
        case = Situation("bert", seed)
        other = copy.deepcopy(case.original)
        apply_plan(other, case.other())
        state, twin = copy.deepcopy(other.state_dict()), dense_twin(other)
        for model in (case.pruned, case.fresh()):
            follow_state_dict(model)
            assert_right_or_refused(
                case, model, lambda m=model, s=state: m.load_state_dict(s, strict=strict, assign=assign), twin
            )


def test_shards_loaded_one_by_one_are_right_or_refused(tmp_path: Path) -> None:
    """Each shard is a part of a pruned state dict, which does not tell the structure."""
    for seed in range(100, 115):
        case = Situation("bert", seed)
        state, model = case.state(), case.fresh()
        names = list(state)
        if seed % 2:
            case.rng.shuffle(names)
        count = case.rng.randint(2, 5)
        size = -(-len(names) // count)
        refused = False
        for start in range(0, len(names), size):
            shard = {name: state[name] for name in names[start : start + size]}
            held = copy.deepcopy(model.state_dict())
            try:
                model.load_state_dict(shard, strict=False)
            except StructureError:
                refused = True
                assert_same_entries(model, held)
            except RuntimeError:  # of torch, which lists the entries that do not fit
                refused = True
        if not refused:
            assert_outputs(model, case.expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_indices_that_are_no_integers_are_right_or_refused(dtype: torch.dtype) -> None:
    """Some tools convert every tensor of a file to half precision, which rounds large indices."""
    case = Situation("bert", 5)
    state = {name: value.to(dtype) for name, value in case.state().items()}
    model = case.fresh()
    assert_right_or_refused(case, model, lambda: model.load_state_dict(state), case.expected.to(dtype).float())
