"""Attention gains what its heads cost: operations are counted, not timed."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from helpers.plans import features_of, random_plan
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from pgb_lightning import MatrixPlan, PruningPlan, apply_plan, dense_twin, follow_state_dict
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.mpnet_attention import SomeHeads
from pgb_lightning.export import export_huggingface
from pgb_lightning.latency import layer_arguments, random_hidden_states
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.surgery.checks import matches

FAMILIES = ("bert", "mpnet", "deberta", "deberta-v2", "deberta-v2 with position projections", "modernbert")


def keeping(encoder: Encoder, *heads: list[int]) -> PruningPlan:
    """Keep some of the heads that each layer has, and all neurons."""
    matrices = []
    for layer, kept in enumerate(heads):
        for sublayer, kinds in encoder.sublayers.items():
            for kind in kinds:
                matrix = as_matrix(encoder.matrix(layer, kind))
                size = matrix.in_features, matrix.out_features
                rows = columns = None
                if sublayer == "attention":
                    features = tuple(features_of(encoder, sublayer, kind, kept))
                    closes = kind == kinds[-1]
                    rows = (features if closes else tuple(range(size[0])),)
                    columns = (tuple(range(size[1])) if closes else features,)
                matrices.append(MatrixPlan(layer, kind, *size, rows, columns))
    return PruningPlan(encoder.model_type, tuple(matrices))


def attention_flops(model: Any) -> int:
    model.requires_grad_(False).set_attn_implementation("eager")
    encoder = find_encoder(model.eval())
    hidden, arguments = random_hidden_states(encoder, 2, 9), layer_arguments(encoder, 2, 9)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for layer, given in zip(encoder.layers, arguments, strict=True):
            encoder.run(layer, "attention", hidden, given)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_the_heads_have_half_of_the_operations(name: str) -> None:
    model = tiny_model(name)
    before, encoder = attention_flops(model), find_encoder(model)
    total = encoder.num_heads // encoder.queries_per_key
    apply_plan(encoder, keeping(encoder, *([total - 1 - layer % 2] for layer in range(len(encoder.layers)))))
    assert attention_flops(model) * total == before


def mpnet(seed: int = 0) -> Any:
    """A model with four heads, in which the planes of the position bias differ."""
    model = tiny_model("mpnet", num_attention_heads=4, seed=seed).eval()
    find_encoder(model).model.encoder.relative_attention_bias.weight.data.normal_(std=3.0)
    return model


PLANES = ([1, 3], [0, 2, 3])


def test_each_head_of_mpnet_keeps_its_plane() -> None:
    """Outputs and gradients are those of all heads with zeros in the place of those that are removed."""
    model, whole = mpnet(), mpnet()
    whole.load_state_dict(model.state_dict())
    plan = keeping(find_encoder(model), *PLANES)
    apply_plan(find_encoder(model), plan)
    family = find_encoder(whole).family
    family = replace(family, select_heads=None, head_counts=(), head_widths=(), needs_all_heads=True)
    apply_plan(replace(find_encoder(whole), family=family), plan)
    tables = []
    for each in (model, whole):
        for batch in tiny_batches(2):
            each(**batch).loss.backward()
        tables.append(find_encoder(each).model.encoder.relative_attention_bias.weight.grad)
    torch.testing.assert_close(tiny_logits(model), tiny_logits(whole), rtol=0, atol=1e-5)
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-4, atol=1e-6)
    assert matches(find_encoder(model), plan)
    assert [layer.attention.attn.head_index.tolist() for layer in find_encoder(model).layers] == [*map(list, PLANES)]


def test_the_planes_are_saved_and_loaded(tmp_path: Path) -> None:
    model = mpnet()
    apply_plan(find_encoder(model), keeping(find_encoder(model), *PLANES))
    expected = tiny_logits(model)
    loaded = mpnet(1)
    follow_state_dict(loaded)
    other = mpnet(2)
    apply_plan(find_encoder(other), keeping(find_encoder(other), [0], [3]))
    for each in (model, other, model):  # also into an encoder with other heads
        loaded.load_state_dict(each.state_dict())
    torch.testing.assert_close(tiny_logits(loaded), expected)
    export_huggingface(model, tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(tiny_logits(again), expected, rtol=0, atol=1e-5)
    for each in (copy.deepcopy(model), dense_twin(model), dense_twin(again)):
        torch.testing.assert_close(tiny_logits(each), expected, rtol=0, atol=1e-5)
    assert not any(isinstance(module, SomeHeads) for module in dense_twin(model).modules())


def test_heads_of_mpnet_are_removed_further() -> None:
    model, once = mpnet(), mpnet()
    once.load_state_dict(model.state_dict())
    apply_plan(find_encoder(model), keeping(find_encoder(model), *PLANES))
    encoder = find_encoder(model)
    sizes = {name: encoder.inner_size(name) for name in encoder.sublayers}
    second = replace(keeping(encoder, [1], [0, 2]), dense_sizes=sizes)  # of the heads that are left
    apply_plan(encoder, second)
    apply_plan(find_encoder(once), keeping(find_encoder(once), [3], [0, 3]))
    torch.testing.assert_close(tiny_logits(model), tiny_logits(once))


def test_groups_leave_all_heads() -> None:
    model = mpnet()
    encoder = find_encoder(model)
    apply_plan(encoder, random_plan(encoder, random.Random(0), ("groups",)))
    assert not any(isinstance(module, SomeHeads) for module in model.modules())
