"""Ways to copy, convert or edit a pruned model: each returns one with the outputs of ``Situation.expected``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.pruned_models import Situation, run
from helpers.ways_to_load import WAYS, load, way
from pgb_lightning import apply_plan
from pgb_lightning.encoders.find import find_encoder

__all__ = ["WAYS", "Called"]


@way
def deep_copy(case: Situation, folder: Path) -> nn.Module:
    run(case.pruned)
    return copy.deepcopy(case.pruned)


@way
def pickled(case: Situation, folder: Path) -> nn.Module:
    return pickle.loads(pickle.dumps(case.pruned))  # type: ignore[no-any-return]


class Called(nn.Module):
    """A model run by ``functional_call`` with the weights and indices of another."""

    def __init__(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.state = model, state

    def forward(self, **batch: Tensor) -> Any:
        return torch.func.functional_call(self.model, self.state, (), batch)


@way
def functional_call(case: Situation, folder: Path) -> nn.Module:
    other = load(case, folder)
    with torch.no_grad():
        for name, value in other.state_dict().items():
            value.zero_() if name.endswith(("weight", "bias")) else value.copy_(value.flip(-1))
    return Called(other, case.state())


@way
def parameters_swapped_on_conversion(case: Situation, folder: Path) -> nn.Module:
    return _convert(case, folder, torch.__future__.set_swap_module_params_on_conversion)


@way
def parameters_overwritten_on_conversion(case: Situation, folder: Path) -> nn.Module:
    return _convert(case, folder, torch.__future__.set_overwrite_module_params_on_conversion)


def _convert(case: Situation, folder: Path, setting: Callable[[bool], None]) -> nn.Module:
    setting(True)
    try:
        model = load(case, folder)
        run(model)
        return model.double().float()
    finally:
        setting(False)


@way
def there_and_back(case: Situation, folder: Path) -> nn.Module:
    """To half precision and back: equal to a dense model that lost the same digits."""
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        case.pruned.to(dtype).float()
        case.expected.to(dtype).float()
    return case.pruned


@way
def edited_in_place(case: Situation, folder: Path) -> nn.Module:
    run(case.pruned)
    with torch.no_grad():
        for model in (case.pruned, case.expected):
            for parameter in find_encoder(model).model.parameters():
                parameter.mul_(1.25)
    return case.pruned


@way
def edited_data(case: Situation, folder: Path) -> nn.Module:
    run(case.pruned)
    for model in (case.pruned, case.expected):
        for parameter in model.parameters():
            parameter.data = parameter.data * 0.75
    return case.pruned


@way
def reordered_blocks(case: Situation, folder: Path) -> nn.Module:
    """The blocks of a matrix in another order are the same matrix, however they are written."""
    run(case.pruned)
    for matrix in _grouped(case.pruned):
        order = torch.randperm(matrix.num_groups)
        for value in (matrix.weight, matrix.input_index, matrix.output_index):
            value.data = value.data[order]
    return case.pruned


def _grouped(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if getattr(module, "num_groups", 0)]


@way
def attributes_replaced(case: Situation, folder: Path) -> nn.Module:
    model = case.fresh()
    apply_plan(model, case.plan)
    run(model)
    for name, value in copy.deepcopy(case.pruned).state_dict(keep_vars=True).items():
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, value)
    return model


@way
def vector_of_parameters(case: Situation, folder: Path) -> nn.Module:
    model = load(case, folder)
    vector = nn.utils.parameters_to_vector(case.pruned.parameters())
    nn.utils.vector_to_parameters(vector, model.parameters())
    return model


@way
def shared_memory(case: Situation, folder: Path) -> nn.Module:
    return case.pruned.share_memory()  # type: ignore[no-any-return]
