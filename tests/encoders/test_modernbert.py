"""ModernBERT and what it shares with others: attention by layer, fused parts, gates, pre-norm, no biases."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from pgb_lightning import PruningConfig, dense_twin, follow_state_dict, prune
from pgb_lightning.calibration import Calibration, attention, calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.fused import FusedLinear
from pgb_lightning.model_calls import record_calls
from pgb_lightning.search import latency_table
from pgb_lightning.search.candidates import Candidate, list_candidates
from pgb_lightning.search.costs import dense_total
from pgb_lightning.search.latency_table import measure_table, shape_key, table_setting

#: Sequences are longer than the window of local attention, 8 tokens.
LENGTH = 21


def modernbert(**settings: Any) -> Any:
    return tiny_model("modernbert", **{"num_hidden_layers": 3, **settings})


def statistics(model: nn.Module, batches: list[dict[str, Tensor]]) -> Calibration:
    return calibrate(find_encoder(model), batches, model_loss(model), moments=True)


def pruned(ratio: float = 0.5, preset: str = "default", **settings: Any) -> Any:
    model = modernbert(**settings)
    prune(model, tiny_batches(4), PruningConfig.from_preset(preset, pruning_ratio=ratio))
    return model


def batches_with(padding: str, positions: bool) -> list[dict[str, Tensor]]:
    batches = tiny_batches(2, length=LENGTH, padding=padding)
    for batch in batches if positions else []:
        batch["position_ids"] = torch.arange(LENGTH).expand(8, -1) + torch.arange(8).unsqueeze(1)
    return batches


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("padding", ["right", "left", "none"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_recorded_arguments_reproduce_global_and_local_layers(
    implementation: str, padding: str, positions: bool
) -> None:
    model = modernbert(attn_implementation=implementation)
    encoder, batches = find_encoder(model), batches_with(padding, positions)
    given = statistics(model, batches).inputs[0]
    with torch.no_grad():
        expected = encoder.model(
            **{name: value for name, value in batches[0].items() if name != "labels"}, output_hidden_states=True
        ).hidden_states
        states = given.hidden
        for number, layer in enumerate(encoder.layers):
            torch.testing.assert_close(states[given.tokens], expected[number][given.tokens])
            for sublayer in encoder.sublayers:
                states = encoder.run(layer, sublayer, states, given.arguments[number])
        states = encoder.model.final_norm(states)
    torch.testing.assert_close(states[given.tokens], encoder.model(**_inputs(batches[0]))[0][given.tokens])


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize("padding", ["right", "none"])
def test_attention_implementations_prune_alike(padding: str) -> None:
    batches = tiny_batches(3, length=LENGTH, padding=padding)
    models = [modernbert(attn_implementation=name) for name in ("sdpa", "eager")]
    plans = [prune(model, batches, PruningConfig(pruning_ratio=0.5)) for model in models]
    assert [matrix.block_shape for matrix in plans[0].matrices] == [matrix.block_shape for matrix in plans[1].matrices]
    torch.testing.assert_close(*(tiny_logits(model, batches) for model in models), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("flex_attention", torch.float32, "has no gradients on a CPU"),
        ("flash_attention_2", torch.float32, r"half precision only.*torch\.float32"),
        ("flash_attention_3", torch.float32, r"half precision only.*torch\.float32"),
        ("flash_attention_2", torch.bfloat16, None),
        ("sdpa", torch.float32, None),
    ],
)
def test_implementations_without_gradients_are_refused_before_any_data_is_read(
    name: str, dtype: torch.dtype, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "attention_implementation", lambda config: name)
    encoder = find_encoder(modernbert().to(dtype))
    if message is None:
        return attention.check_attention(encoder)
    unread = iter(tiny_batches(1))
    with pytest.raises(ValueError, match=rf'attn_implementation="{name}" .*{message}.*"sdpa"'):
        calibrate(encoder, unread, lambda batch: None)
    assert len(list(unread)) == 1
    return None


def test_local_and_global_attention_are_measured_apart(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = modernbert()
    encoder = find_encoder(model)
    found = list_candidates(encoder, statistics(model, tiny_batches(2)), PruningConfig(max_groups=1))
    cost = {"full_attention": 3.0, "sliding_attention": 2.0, "": 1.0}

    def seconds(_: object, candidates: list[Candidate], *__: object) -> list[float]:
        return [cost[encoder.attention_type(one.layer) if one.sublayer == "attention" else ""] for one in candidates]

    monkeypatch.setattr(latency_table, "_time_candidates", seconds)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = measure_table(encoder, found, 1, 16)
    dense = [options[0] for options in found]
    assert [table(candidate) for candidate in dense] == [3, 1, 2, 1, 3, 1]
    assert shape_key(dense[0], encoder) != shape_key(dense[2], encoder)
    assert shape_key(dense[0], encoder) == shape_key(dense[4], encoder)
    assert shape_key(dense[1], encoder) == shape_key(dense[3], encoder)
    assert dense_total(encoder, PruningConfig(budget="latency", latency_length=16)) == 11
    wider = find_encoder(modernbert(local_attention=16))
    assert table_setting(encoder, 1, 16) != table_setting(wider, 1, 16)
    same = find_encoder(modernbert(layer_types=["full_attention"] * 3))
    assert shape_key(dense[0], same) == shape_key(dense[2], same) == "attention: 48x48, 48x48, 48x48, 48x48"


@pytest.mark.parametrize("preset", ["default", "balanced"])
def test_a_pruned_model_compiles_to_one_graph(preset: str) -> None:
    torch.compiler.reset()
    model, batch = pruned(0.5, preset, num_hidden_layers=2), tiny_batches(1)[0]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


def test_checkpointed_layers_give_the_same_statistics() -> None:
    plain, inside, wrapped = (modernbert() for _ in range(3))
    inside.gradient_checkpointing_enable()  # which transformers applies in training mode only
    stack = find_encoder(wrapped).stack
    apply_activation_checkpointing(wrapped, check_fn=lambda module: any(module is layer for layer in stack))
    expected = statistics(plain, tiny_batches(2))
    for model in (inside, wrapped):
        found = statistics(model, tiny_batches(2))
        assert found.moments is not None
        assert expected.moments is not None
        torch.testing.assert_close(found.fisher, expected.fisher)
        torch.testing.assert_close(found.moments.inputs, expected.moments.inputs)
        torch.testing.assert_close(found.moments.gradients, expected.moments.gradients)


@pytest.mark.parametrize(("preset", "ratio"), [("default", 0.5), ("default", 0.85), ("balanced", 0.5)])
def test_a_pruned_model_trains_copies_and_loads(preset: str, ratio: float) -> None:
    model, batch = pruned(ratio, preset), tiny_batches(1)[0]
    expected = tiny_logits(model)
    torch.testing.assert_close(tiny_logits(pickle.loads(pickle.dumps(model))), expected)
    fresh = modernbert(seed=3)
    follow_state_dict(fresh)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(tiny_logits(fresh), expected)
    assert str(fresh) == str(model)
    for dtype in (torch.float16, torch.bfloat16):
        half = tiny_logits(copy.deepcopy(model).to(dtype))
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**batch).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in find_encoder(model).stack.parameters())


def test_narrow_layers_are_single_products_that_can_be_pruned_further() -> None:
    model, config = modernbert(), PruningConfig(pruning_ratio=0.3, max_groups=1)
    prune(model, tiny_batches(4), config)
    assert not any(isinstance(module, FusedLinear) for module in model.modules())
    assert {type(layer.attn.Wqkv) for layer in find_encoder(model).layers} == {nn.Linear}
    plan = prune(model, tiny_batches(4), replace(config, pruning_ratio=0.6))
    assert plan.pruning_ratio == pytest.approx(0.6, abs=0.01)
    torch.testing.assert_close(tiny_logits(dense_twin(model)), tiny_logits(model))


def test_a_twin_follows_another_attention_implementation() -> None:
    model = pruned(0.5, attn_implementation="eager")
    twin, expected = dense_twin(model), tiny_logits(model)
    assert {id(module.config) for module in twin.modules() if hasattr(module, "config")} == {id(twin.config)}
    for name in ("sdpa", "eager"):  # their masks differ in form
        twin.set_attn_implementation(name)
        torch.testing.assert_close(tiny_logits(twin), expected)


@pytest.mark.parametrize("kept", [(1, 2), (0, 2)])
def test_a_twin_needs_the_layers_of_the_configuration(kept: tuple[int, ...]) -> None:
    model = modernbert()
    model.model.layers = nn.ModuleList([model.model.layers[number] for number in kept])
    with pytest.raises(ValueError, match="layer_types="):
        dense_twin(model)


def test_layers_can_be_removed_from_the_end() -> None:
    model = modernbert()
    model.model.layers = model.model.layers[:2]
    prune(model, tiny_batches(4), PruningConfig(pruning_ratio=0.5))
    torch.testing.assert_close(tiny_logits(dense_twin(model)), tiny_logits(model))


def test_masks_that_are_given_for_each_type_of_layer() -> None:
    model, (batch,) = modernbert(), tiny_batches(1, length=LENGTH)
    tokens = batch["attention_mask"].bool()[:, None, None, :].expand(-1, 1, LENGTH, -1)
    distance = (torch.arange(LENGTH) - torch.arange(LENGTH).unsqueeze(1)).abs()
    masks = {"full_attention": tokens, "sliding_attention": tokens & (distance <= 4)}
    given: Any = {**batch, "attention_mask": masks}
    with record_calls(model) as calls:
        outputs = model(**given).logits
    torch.testing.assert_close(outputs, model(**batch).logits)
    assert calls[0].token_mask(calls[0].hidden[0]).all()  # which positions are padding is not known
    prune(model, [given])
    assert tiny_logits(model, [given]).isfinite().all()
