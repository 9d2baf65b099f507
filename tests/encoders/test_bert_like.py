"""Models with BERT's layers: positions, LayerNorms before the matrices, head counts, and decoders."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from helpers.heads import removing
from helpers.plans import random_plan

from pgb_lightning import PruningConfig, apply_plan, dense_twin, prune
from pgb_lightning.calibration import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.latency import layer_arguments
from pgb_lightning.surgery.from_state_dict import follow_state_dict

BERT_LIKE = ("bert", "ernie", "megatron-bert", "esm", "roformer", "rembert")
PRE_NORM = ("megatron-bert", "roberta-prelayernorm", "xlm-roberta-xl", "esm")


def narrowed(model: Any) -> Any:
    """Return a copy with fewer heads and neurons."""
    pruned = copy.deepcopy(model)
    apply_plan(pruned, random_plan(find_encoder(model), random.Random(3), ("narrow",)))
    return pruned


@pytest.mark.parametrize("settings", [{"is_decoder": True}, {"is_decoder": True, "add_cross_attention": True}])
@pytest.mark.parametrize("model_type", BERT_LIKE)
def test_decoders_are_refused_before_any_batch_is_read(model_type: str, settings: dict[str, bool]) -> None:
    model = tiny_model(model_type, **settings)

    def unread() -> Any:
        raise AssertionError
        yield

    with pytest.raises(ValueError, match=r"is_decoder=True.*is_decoder=False"):
        prune(model, unread(), PruningConfig(pruning_ratio=0.5))


@pytest.mark.parametrize("model_type", BERT_LIKE)
def test_attributes_with_numbers_of_heads_follow_the_heads_that_are_left(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    pruned = narrowed(model)
    loaded = tiny_model(model_type, seed=1)
    follow_state_dict(loaded)
    loaded.load_state_dict(pruned.state_dict())
    counts = []
    for each in (pruned, loaded):
        found = find_encoder(each)
        for number, layer in enumerate(found.layers):
            if not found.is_dropped(number, "attention"):
                attention = layer.get_submodule("attention.self")
                assert attention.all_head_size == found.matrix(number, "V").out_features
                assert attention.num_attention_heads * encoder.head_size == attention.all_head_size
                counts.append(attention.num_attention_heads)
    assert min(counts) < encoder.num_heads
    for layer in find_encoder(dense_twin(pruned)).layers:
        assert layer.get_submodule("attention.self").num_attention_heads == encoder.num_heads
    torch.testing.assert_close(tiny_logits(loaded), tiny_logits(pruned))


@pytest.mark.parametrize("settings", [{}, {"position_embedding_type": "absolute", "emb_layer_norm_before": True}])
def test_esm_with_rotary_and_absolute_positions(settings: dict[str, Any]) -> None:
    """ESM-2 and ESM-1b. Masked tokens are zeroed, and the others scaled by the number of real tokens."""
    model = tiny_model("esm", **settings)
    encoder, batches = find_encoder(model), tiny_batches(2)
    for batch in batches:
        batch["input_ids"][:, 2] = model.config.mask_token_id
    given = calibrate(encoder, batches, model_loss(model)).inputs[0]
    expected: list[torch.Tensor] = []
    handle = encoder.layers[-1].register_forward_hook(lambda _, args, output: expected.append(output))
    with torch.no_grad():
        model(**batches[0])
        hidden = given.hidden
        for layer, arguments in zip(encoder.layers, given.arguments, strict=True):
            assert (arguments["position_embeddings"] is None) == bool(settings)
            for sublayer in SUBLAYERS:
                hidden = encoder.run(layer, sublayer, hidden, arguments)
    handle.remove()
    torch.testing.assert_close(hidden[given.tokens], expected[0][given.tokens])
    pruned = narrowed(model)
    torch.testing.assert_close(tiny_logits(dense_twin(pruned)), tiny_logits(pruned), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", ["esm", "roformer"])
def test_layers_with_rotary_positions_are_measured_with_them(model_type: str) -> None:
    encoder = find_encoder(tiny_model(model_type))
    name = encoder.family.arguments[1]
    for given in layer_arguments(encoder, batch_size=2, length=9):
        positions = given[name][0] if isinstance(given[name], tuple) else given[name]
        assert positions.shape[-2:] == (9, encoder.head_size)


@pytest.mark.parametrize("model_type", PRE_NORM)
def test_a_dropped_sublayer_leaves_no_layer_norm_before_it(model_type: str) -> None:
    """Only the constant is left: nothing reads the normalized states."""
    model = tiny_model(model_type)
    dropped = copy.deepcopy(model)
    apply_plan(dropped, removing(dropped, {0: SUBLAYERS["attention"], 1: SUBLAYERS["ffn"]}))
    encoder = find_encoder(dropped)
    for number, sublayer in enumerate(SUBLAYERS):
        norm = f"{number}.{encoder.family.norms[sublayer]}."
        assert any(name.startswith(norm) for name, _ in find_encoder(model).stack.named_parameters())
        assert not any(name.startswith(norm) for name, _ in encoder.stack.named_parameters())
        hidden = torch.randn(2, 5, encoder.hidden_size)
        arguments = layer_arguments(encoder, batch_size=2, length=5)[number]
        with torch.no_grad():
            added = encoder.run(encoder.layers[number], sublayer, hidden, arguments) - hidden
        torch.testing.assert_close(added, added[:1, :1].expand_as(added), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["rembert", "roformer", "layoutlm"])
def test_attention_weights_have_an_entry_for_each_layer(model_type: str) -> None:
    """The layers of some models return the weights themselves, and those of others are recorded."""
    model = tiny_model(model_type, attn_implementation="eager")
    apply_plan(model, removing(model, {0: SUBLAYERS["attention"]}))
    batch = tiny_batches(1)[0]
    with torch.no_grad():
        for output in (
            model(**batch, output_attentions=True).attentions,
            model(**batch, output_attentions=True, return_dict=False)[-1],
        ):
            assert output[0] is None
            assert output[1].shape[:2] == (8, 4)
