"""What comes out of a pruned encoder keeps its form: attention weights, hidden states, and parameters that are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.families import tiny_logits, tiny_model
from helpers.heads import (
    ALL_ATTENTION,
    ATTENTION,
    DROPS,
    EVERYTHING,
    FFN,
    assert_same_outputs,
    build,
    build_pruned,
    run,
)
from helpers.tiny import MODEL_TYPES, batches
from transformers import PreTrainedModel

from pgb_lightning import (
    ConstantLinear,
    PruningConfig,
    PruningPlan,
    apply_plan,
    dense_twin,
    follow_state_dict,
    prune,
)
from pgb_lightning.benchmark.models import narrow_plan
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers import DroppedTable

PLANS: dict[str, Any] = {
    "attention": ALL_ATTENTION,
    "everything": EVERYTHING,
    "ffn": dict.fromkeys(range(3), FFN),
    "Q and K": dict.fromkeys(range(3), ("Q", "K")),
    "K": dict.fromkeys(range(3), ("K",)),
    "some": {0: ("Q",), 1: ATTENTION, 2: FFN},
}


def is_none(entries: Any) -> list[bool]:
    return [entry is None for entry in entries]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
@pytest.mark.parametrize("early", [False, True], ids=["pruned first", "run first"])
def test_attentions_and_hidden_states_have_an_entry_for_each_layer(model_type: str, head: str, early: bool) -> None:
    model = build(model_type, head)
    follow_state_dict(model)
    if early:  # transformers then has its hooks in the dense layers
        run(model, output_attentions=True, output_hidden_states=True)
    model.load_state_dict(build_pruned(model_type, head).state_dict())
    output = run(model, output_attentions=True, output_hidden_states=True)
    assert is_none(output.attentions) == [False, True, False]
    assert is_none(output.hidden_states) == [False] * 4
    unnamed = run(model, output_attentions=True, output_hidden_states=True, return_dict=False)
    [attentions] = [part for part in unnamed if isinstance(part, tuple) and len(part) == 3]
    assert is_none(attentions) == [False, True, False]
    twin = run(dense_twin(model), output_attentions=True, output_hidden_states=True)
    assert is_none(twin.attentions) == [False] * 3
    assert is_none(twin.hidden_states) == [False] * 4
    model.config.output_attentions = True
    assert is_none(run(model).attentions) == [False, True, False]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_attentions_of_a_model_without_any_attention(model_type: str) -> None:
    model = build_pruned(model_type, "ForSequenceClassification", EVERYTHING)
    assert run(model, output_attentions=True).attentions == (None, None, None)
    assert (None, None, None) in run(model, output_attentions=True, return_dict=False)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_dense_twin_of_a_model_that_lost_layers_has_as_many_layers(model_type: str) -> None:
    """Layers can be taken off the list without a change of ``config.num_hidden_layers``."""
    model = build_pruned(model_type, "ForSequenceClassification", {0: FFN, 1: ATTENTION})
    del find_encoder(model).stack[2]
    assert_same_outputs(dense_twin(model), model)


@pytest.mark.parametrize("removed", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_parameter_has_a_gradient_and_every_state_dict_loads(model_type: str, removed: Any) -> None:
    dense = build(model_type, "ForSequenceClassification")
    model = build_pruned(model_type, "ForSequenceClassification", removed)
    assert parameters_without_gradient(model) == []
    assert_same_outputs(dense_twin(model), model)
    assert dense_twin(model).state_dict().keys() == dense.state_dict().keys()
    state = model.state_dict()
    # Release 0.1.0 wrote no weight of removed matrices, and the tables that nothing reads.
    old = {name: value for name, value in state.items() if value.numel()}
    table = {name: value for name, value in dense.state_dict().items() if "relative_attention_bias" in name}
    for stored in (state, table | old):
        follower = build(model_type, "ForSequenceClassification", seed=1)
        follow_state_dict(follower)
        for _ in range(2):
            follower.load_state_dict(stored)
            assert_same_outputs(follower, model)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_parameter_has_a_gradient_at_high_ratios(model_type: str) -> None:
    model = build(model_type, "ForSequenceClassification")
    prune(model, batches(), PruningConfig(pruning_ratio=0.97))
    assert parameters_without_gradient(model) == []


def test_the_table_of_mpnet_stays_while_a_layer_reads_it() -> None:
    assert isinstance(build_pruned("mpnet", removed=ALL_ATTENTION).encoder.relative_attention_bias, DroppedTable)
    assert not isinstance(build_pruned("mpnet", removed=DROPS).encoder.relative_attention_bias, DroppedTable)


def test_a_removed_matrix_is_stored_as_no_blocks() -> None:
    layer = ConstantLinear(8, 4)
    assert layer.state_dict()["weight"].shape == (0, 0, 0)
    layer.load_state_dict({"bias": torch.ones(4)})
    assert layer(torch.zeros(1, 8)).tolist() == [[1.0] * 4]


def parameters_without_gradient(model: PreTrainedModel) -> list[str]:
    model.train()(**batches(1)[0]).loss.backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("part", ["attention", "ffn", "norms"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_a_dense_twin_keeps_the_data_type_of_each_part(model_type: str, part: str) -> None:
    """The twin has the data type of a part also where the part has lost heads or neurons."""
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    apply_plan(encoder, narrow_plan(encoder, 0.5))
    kinds = encoder.sublayers.get(part, ())  # type: ignore[call-overload]
    for layer in encoder.layers:
        paths = {encoder.family.paths[kind] for kind in kinds}
        for name, module in layer.named_modules():
            if name in paths or (part == "norms" and "norm" in name.lower()):
                module.double()
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    twin = dense_twin(model)
    assert dtypes == {name: parameter.dtype for name, parameter in twin.named_parameters()}
    assert len(set(dtypes.values())) == 2
    torch.testing.assert_close(tiny_logits(twin.double()), tiny_logits(model.double()))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("model_type", ["mpnet", "modernbert"])
def test_new_modules_have_the_mode_of_the_model(model_type: str, training: bool) -> None:
    model, loaded = (tiny_model(model_type).train(training) for _ in range(2))
    gone: Any = {"input_index": (), "output_index": ()}
    dense = narrow_plan(find_encoder(model), 0.5).matrices
    plan = PruningPlan(model_type, tuple(replace(each, **gone) if each.kind in "QKVO" else each for each in dense))
    apply_plan(model, plan)
    follow_state_dict(loaded)
    loaded.load_state_dict(model.state_dict())
    for each in (model, loaded):
        assert {module.training for module in each.modules()} == {training}
