"""Each use of the private API of torch and transformers: these tests fail when that API changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE
from transformers import AutoModel, BertConfig, BertModel

from pgb_lightning import _compat


def test_hooks_that_collect_outputs_are_registered_again_for_new_layers() -> None:
    model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    tokens = torch.ones(1, 3, dtype=torch.long)
    assert len(model(tokens, output_hidden_states=True).hidden_states) == 2
    model.encoder.layer[0] = type(model.encoder.layer[0])(model.config)
    _compat.forget_output_hooks(model)
    assert len(model(tokens, output_hidden_states=True).hidden_states) == 2


def test_a_replica_has_the_attributes_of_a_module() -> None:
    module = nn.Linear(2, 2)
    module.note = [1]  # type: ignore[assignment]
    replica = getattr(module, _compat.REPLICATE)()
    assert replica is not module
    assert vars(replica)["note"] is module.note


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_forward_hooks_are_found(register: str) -> None:
    module = nn.Linear(2, 2)
    assert not _compat.has_forward_hooks(module)
    handle = getattr(module, register)(lambda *_: None)
    assert _compat.has_forward_hooks(module)
    handle.remove()
    assert not _compat.has_forward_hooks(module)


def test_hooks_are_shared_with_another_module_until_their_handles_remove_them() -> None:
    old, new, calls = nn.Linear(2, 2), nn.Linear(2, 2), []
    handles = [
        old.register_forward_hook(lambda *_: calls.append("forward"), always_call=True),
        old.register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True),
        old.register_full_backward_hook(lambda *_: calls.append("backward")),
        old.register_full_backward_pre_hook(lambda *_: calls.append("before backward")),
    ]
    _compat.share_hooks(old, new)
    new(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert calls == ["before", "forward", "before backward", "backward"]
    for handle in handles:
        handle.remove()
    calls.clear()
    new(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert calls == []


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_a_tensor_are_found_until_they_are_removed(register: str) -> None:
    parameter = nn.Parameter(torch.ones(2))
    assert not _compat.has_hooks(parameter)
    handle = getattr(parameter, register)(lambda *_: None)
    assert _compat.has_hooks(parameter)
    handle.remove()
    assert not _compat.has_hooks(parameter)


def test_activation_checkpointing_leaves_its_name_out_of_state_dicts() -> None:
    wrapper = checkpoint_wrapper(nn.Linear(2, 2))
    assert [name for name, _ in wrapper.named_children()] == [_compat.CHECKPOINT_WRAPPED]
    assert list(wrapper.state_dict()) == ["weight", "bias"]


def test_a_compiled_module_holds_the_original_under_this_name() -> None:
    original = nn.Linear(2, 2)
    compiled: Any = torch.compile(original)
    assert dict(compiled.named_children()) == {_compat.COMPILED: original}


def test_a_state_dict_has_the_versions_of_its_modules() -> None:
    versions = _compat.state_dict_versions(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).state_dict())
    assert versions == {"": 1, "0": nn.BatchNorm1d._version, "1": 1}
    assert _compat.state_dict_versions({}) == {}


def test_transforms_of_torch_func_are_seen() -> None:
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(_compat.is_transformed())
        return x.sum()

    x = torch.ones(2)
    torch.func.grad(function)(x)
    torch.func.vmap(function)(x)
    torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        function(x)
    assert seen == [True] * 4
    assert not _compat.is_transformed()


def test_fsdp_shows_in_names() -> None:
    assert _compat.is_fsdp_name(f"model.{FSDP_WRAPPED_MODULE}.layer")
    assert not _compat.is_fsdp_name("model.layer")


@pytest.mark.parametrize("earlier", [False, True])
def test_hooks_of_tensors_are_put_back(earlier: bool) -> None:
    weight, calls = torch.ones(1, requires_grad=True), []
    if earlier:
        weight.register_hook(lambda _: calls.append("earlier"))
    restore = _compat.save_tensor_hooks(weight)
    weight.register_hook(lambda _: calls.append("later"))
    weight.register_post_accumulate_grad_hook(lambda _: calls.append("accumulated"))
    restore()
    weight.sum().backward()
    assert calls == ["earlier"] * earlier
    weight.register_hook(lambda _: calls.append("new"))
    weight.sum().backward()
    assert calls[-1] == "new"


def test_the_attention_implementation_is_read() -> None:
    assert _compat.attention_implementation(BertConfig(attn_implementation="eager")) == "eager"
    assert _compat.attention_implementation(object()) is None


def test_modules_that_are_marked_are_not_initialized() -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertModel(config)
    _compat.leave_uninitialized(model.encoder)
    model.pooler._is_hf_initialized = model.pooler.dense._is_hf_initialized = False
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.initialize_weights()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"pooler.dense.weight"}


def test_the_models_of_an_auto_class_are_those_of_the_very_configuration() -> None:
    assert _compat.registered_models(AutoModel, BertConfig) == (BertModel,)
    assert _compat.registered_models(AutoModel, type("BertConfig", (BertConfig,), {})) == ()
    assert _compat.registered_models(AutoModel, None) == ()
