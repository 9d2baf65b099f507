"""Ways to load a pruned model: each returns one that must have the outputs of ``Situation.expected``."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate import init_empty_weights, load_checkpoint_in_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from helpers.pruned_models import Situation, run
from pgb_lightning import apply_plan, follow_state_dict

Way = Callable[[Situation, Path], nn.Module]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    """Add a function to :data:`WAYS`."""
    WAYS[function.__name__] = function
    return function


@way
def plan_alone(case: Situation, folder: Path) -> nn.Module:
    return case.pruned


@way
def load(case: Situation, folder: Path) -> nn.Module:
    model = case.fresh()
    model.load_state_dict(case.state())
    return model


@way
def load_with_assign(case: Situation, folder: Path) -> nn.Module:
    model = case.fresh()
    model.load_state_dict(copy.deepcopy(case.state()), assign=True)
    return model


@way
def load_non_strict(case: Situation, folder: Path) -> nn.Module:
    model = case.fresh()
    assert model.load_state_dict(case.state(), strict=False) == ([], [])
    return model


@way
def load_twice(case: Situation, folder: Path) -> nn.Module:
    model = load(case, folder)
    run(model)
    model.load_state_dict(case.state())
    return model


@way
def load_in_a_wrapper(case: Situation, folder: Path) -> nn.Module:
    holder = nn.ModuleDict({"net": case.fresh()})
    follow_state_dict(holder)
    holder.load_state_dict({f"net.{name}": value for name, value in case.state().items()})
    return holder["net"]


@way
def load_into_another_precision(case: Situation, folder: Path) -> nn.Module:
    model = case.fresh().double()
    model.load_state_dict(case.state())
    return model.float()


@way
def load_wider_indices(case: Situation, folder: Path) -> nn.Module:
    """Other writers may store int64."""
    model = case.fresh()
    model.load_state_dict({k: v.long() if v.dtype == torch.int32 else v for k, v in case.state().items()}, assign=True)
    return model


def _complete(model: nn.Module, case: Situation) -> nn.Module:
    """Give a model that was built without memory the buffers that state dicts do not hold, as for a dense model."""
    stored = case.original.state_dict().keys()
    for name, buffer in case.original.named_buffers():
        if name not in stored:
            path, _, last = name.rpartition(".")
            vars(model.get_submodule(path))["_buffers"][last] = buffer.clone()
    return model


@way
def meta_and_assign(case: Situation, folder: Path) -> nn.Module:
    with torch.device("meta"):
        model = case.fresh()
    model.load_state_dict(copy.deepcopy(case.state()), assign=True)
    return _complete(model, case)


@way
def meta_and_to_empty(case: Situation, folder: Path) -> nn.Module:
    with torch.device("meta"):
        model = case.fresh()
    model.to_empty(device="cpu").load_state_dict(case.state())
    return _complete(model, case)


@way
def meta_structure_then_to_empty(case: Situation, folder: Path) -> nn.Module:
    """The structure is built on the meta device; the weights come with a second load."""
    with torch.device("meta"):
        model = case.fresh()
        apply_plan(model, case.plan)
    model.to_empty(device="cpu").load_state_dict(case.state())
    return _complete(model, case)


@way
def empty_weights(case: Situation, folder: Path) -> nn.Module:
    with init_empty_weights():
        model = case.fresh()
    model.load_state_dict(copy.deepcopy(case.state()), assign=True)
    return _complete(model, case)


@way
def under_a_default_device(case: Situation, folder: Path) -> nn.Module:
    model = case.fresh()
    with torch.device("meta"):
        model.load_state_dict(case.state())
    return model


@way
def torch_file(case: Situation, folder: Path) -> nn.Module:
    torch.save(case.state(), folder / "state.pt")
    model = case.fresh()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return model


@way
def memory_map(case: Situation, folder: Path) -> nn.Module:
    torch.save(case.state(), folder / "state.pt")
    model = case.fresh()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True, mmap=True), assign=True)
    return model


@way
def whole_module(case: Situation, folder: Path) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(case.pruned, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


@way
def safetensors_in_shards(case: Situation, folder: Path) -> nn.Module:
    """The shards are read one after the other, and loaded together."""
    _write_shards(case, folder)
    state: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = case.fresh()
    model.load_state_dict(state)
    return model


def _write_shards(case: Situation, folder: Path) -> None:
    names = list(case.state())
    case.rng.shuffle(names)
    parts = {f"part-{k}.safetensors": names[k::3] for k in range(3)}
    for file, own in parts.items():
        save_file({name: case.state()[name].contiguous() for name in own}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@way
def shards_into_the_structure(case: Situation, folder: Path) -> nn.Module:
    """Into a model that has the structure already, any loader of shards works, such as that of accelerate."""
    _write_shards(case, folder)
    model = case.fresh()
    apply_plan(model, case.plan)
    load_checkpoint_in_model(model, str(folder))
    return model


@way
def distributed_checkpoint(case: Situation, folder: Path) -> nn.Module:
    dcp.save(case.state(), checkpoint_id=folder / "dcp", no_dist=True)
    model = case.fresh()
    apply_plan(model, case.plan)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=folder / "dcp", no_dist=True)
    model.load_state_dict(state)
    return model


@way
def converted_distributed_checkpoint(case: Situation, folder: Path) -> nn.Module:
    dcp.save(case.state(), checkpoint_id=folder / "dcp", no_dist=True)
    dcp_to_torch_save(folder / "dcp", folder / "state.pt")
    model = case.fresh()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return model


@way
def state_dict_of_torch_distributed(case: Situation, folder: Path) -> nn.Module:
    state = get_model_state_dict(case.pruned, options=StateDictOptions(full_state_dict=True))
    model = case.fresh()
    apply_plan(model, case.plan)
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
    return model
