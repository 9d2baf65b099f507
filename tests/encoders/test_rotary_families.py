"""The families with rotary positions: NomicBERT, GTE, Jina embeddings v3 and EuroBERT."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from helpers.families import tiny_batches, tiny_logits, tiny_model
from torch import Tensor, nn

from pgb_lightning import GroupedLinear, PruningConfig, dense_twin, follow_state_dict, prune
from pgb_lightning.calibration import Calibration, calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.latency import layer_arguments, layers_runner
from pgb_lightning.surgery.checks import check_prunable

ROTARY = ("nomic_bert", "gte", "jina_embeddings_v3", "eurobert")
EVERYWHERE = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"]
Batch = dict[str, Tensor]


def calibrated(model: Any, batches: list[Batch]) -> Calibration:
    return calibrate(find_encoder(model), batches, model_loss(model))


@torch.no_grad()
def check_stream(model: Any, calibration: Calibration, batches: list[Batch]) -> None:
    """Run the sublayers on the stored inputs with the stored arguments, and compare with the model's last layer."""
    encoder, outputs = find_encoder(model), list[Tensor]()
    handle = encoder.layers[-1].register_forward_hook(lambda _, args, output: outputs.append(output))
    for given, batch in zip(calibration.inputs, batches, strict=True):
        model(**batch)
        hidden = given.hidden
        for layer, arguments in zip(encoder.layers, given.arguments, strict=True):
            for sublayer in SUBLAYERS:
                hidden = encoder.run(layer, sublayer, hidden, arguments)
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(hidden[given.tokens], outputs.pop()[real], rtol=1e-5, atol=1e-5)
    handle.remove()


def with_positions(batches: list[Batch]) -> list[Batch]:
    """Give every sentence positions of its own, which rotary embeddings then tell apart."""
    made = []
    for batch in batches:
        size, length = batch["input_ids"].shape
        positions = torch.arange(length) * (1 + torch.arange(size).unsqueeze(1) % 3)
        made.append({**batch, "position_ids": positions})
    return made


@pytest.mark.parametrize("own_positions", [False, True], ids=["counted", "given"])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("model_type", ROTARY)
def test_stored_rotary_embeddings_are_those_of_the_stored_tokens(
    model_type: str, padding: str, own_positions: bool
) -> None:
    """Positions that are padding in every sentence are not stored, neither of the states nor of the arguments."""
    model = tiny_model(model_type)
    batches = tiny_batches(2, padding=padding)
    for batch in batches:
        batch["attention_mask"][:, slice(-4, None) if padding == "right" else slice(4)] = 0
    if own_positions:
        before = tiny_logits(model, batches)
        batches = with_positions(batches)
        assert not torch.allclose(tiny_logits(model, batches), before, atol=1e-3)
    calibration = calibrated(model, batches)
    for given in calibration.inputs:
        length = given.hidden.shape[1]
        assert length == 9
        first = given.arguments[0]
        cos, sin = first["position_embeddings"]
        size = find_encoder(model).head_size
        assert cos.shape == sin.shape == (8 if own_positions else 1, length, size)
        assert first["attention_mask"].shape[-2:] == (length, length)
        for arguments in given.arguments:  # one copy for all layers, without the memory of what is left out
            assert arguments["position_embeddings"][0] is cos
            assert arguments["attention_mask"] is first["attention_mask"]
        for tensor in (cos, sin, given.hidden):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
        mask = first["attention_mask"]  # of (8, 1, 9, 9) entries, all rows of a sentence are one
        assert mask.untyped_storage().nbytes() == 8 * 9 * mask.element_size()
    check_stream(model, calibration, batches)


@pytest.mark.parametrize("model_type", ROTARY)
def test_positions_that_are_given_prune_and_compensate(model_type: str) -> None:
    """Compensation that ignored the positions would fit the weights to other attention than the model's."""
    model, batches = tiny_model(model_type), with_positions(tiny_batches(6))
    dense = tiny_logits(model, batches)
    errors = {}
    for compensation in (True, False):
        pruned = copy.deepcopy(model)
        config = PruningConfig(pruning_ratio=0.4, search="groups", compensation=compensation)
        prune(pruned, batches, config)
        errors[compensation] = float((tiny_logits(pruned, batches) - dense).square().mean())
    assert errors[True] < 0.7 * errors[False]


@pytest.mark.parametrize("model_type", ROTARY)
def test_a_scaled_rotary_embedding(model_type: str) -> None:
    """With ``rope_type="dynamic"`` the frequencies depend on the longest input so far."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}
    assert find_encoder(tiny_model(model_type)).max_length == 64
    model = tiny_model(model_type, rope_parameters=rope, max_position_embeddings=20)
    assert find_encoder(model).max_length == 40
    short, long = tiny_batches(1, size=4, length=9), tiny_batches(1, size=4, length=40)
    batches = [*short, *long, *short]
    check_stream(model, calibrated(model, batches), batches)
    prune(model, batches, PruningConfig(pruning_ratio=0.5))
    torch.testing.assert_close(tiny_logits(dense_twin(model), batches), tiny_logits(model, batches))


@pytest.mark.parametrize("model_type", ROTARY)
def test_layers_that_the_configuration_leaves_out_are_refused(model_type: str) -> None:
    """The model runs ``self.layers[: config.num_hidden_layers]``."""
    model = tiny_model(model_type, num_hidden_layers=3)
    encoder = find_encoder(model)
    model.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match=r"num_hidden_layers=2.*layers\[:2\]"):
        prune(model, [], PruningConfig(pruning_ratio=0.5))
    model.config.num_hidden_layers = 3
    check_prunable(encoder)


@pytest.mark.parametrize("model_type", ROTARY)
def test_layers_that_the_user_removed(model_type: str) -> None:
    """Without a change of the configuration, which then says more than the model has."""

    def build(seed: int = 0) -> Any:
        model = tiny_model(model_type, num_hidden_layers=3, seed=seed)
        inner = find_encoder(model).model
        inner.layers = nn.ModuleList([inner.layers[0], inner.layers[2]])
        return model

    model = build()
    plan = prune(model, tiny_batches(3), PruningConfig(pruning_ratio=0.5))
    assert plan.num_layers == 2
    expected = tiny_logits(model)
    torch.testing.assert_close(tiny_logits(dense_twin(model)), expected, rtol=1e-5, atol=1e-5)
    other = build(seed=3)
    follow_state_dict(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(tiny_logits(other), expected)


@pytest.mark.parametrize("model_type", ROTARY)
def test_latency_is_measured_with_the_arguments_of_the_model(model_type: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    arguments = layer_arguments(encoder, 3, 20)
    assert len(arguments) == 2
    for given in arguments:
        cos, _ = given["position_embeddings"]
        assert cos.shape == (1, 20, encoder.head_size)
    assert layers_runner(encoder, 3, 20)().shape == (3, 20, 48)
    prune(model, tiny_batches(3), PruningConfig(pruning_ratio=0.9))
    assert layers_runner(encoder, 3, 20)().shape == (3, 20, 48)


@pytest.mark.parametrize(
    ("family", "heads"),
    [
        ("NomicBert", EVERYWHERE),
        ("Gte", EVERYWHERE),
        ("EuroBert", EVERYWHERE),
        ("JinaEmbeddingsV3", [*EVERYWHERE, "ForQuestionAnswering"]),
    ],
)
def test_every_head_is_saved_and_loaded(family: str, heads: list[str], tmp_path: Any) -> None:
    known = {name.removeprefix(family) for name in dir(transformers) if name.startswith(family)}
    assert {head for head in known if head.startswith(("Model", "For"))} == set(heads)
    model_type = getattr(transformers, f"{family}Config").model_type
    batch = {name: value for name, value in tiny_batches(1)[0].items() if name != "labels"}
    for head in heads:
        model = tiny_model(model_type, head.removeprefix("For").removesuffix("Model"))
        assert type(model).__name__ == family + head

        def loss(given: Batch, model: Any = model) -> Tensor:
            output = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])[0]
            return (output * torch.linspace(-1, 1, output.shape[-1])).tanh().mean()

        prune(model, tiny_batches(2), PruningConfig.from_preset("balanced", pruning_ratio=0.35), loss=loss)
        assert any(isinstance(module, GroupedLinear) for module in model.modules())
        model.save_pretrained(tmp_path / head)
        auto = getattr(transformers, "AutoModel" if head == "Model" else f"AutoModel{head}")
        loaded = auto.from_pretrained(tmp_path / head).eval()
        with torch.no_grad():
            expected = model(**batch)[0]
            assert torch.equal(loaded(**batch)[0], expected)
            torch.testing.assert_close(dense_twin(loaded)(**batch)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ROTARY)
def test_biases_are_those_of_the_configuration(model_type: str) -> None:
    """Gates have none but in EuroBERT with ``mlp_bias``."""
    encoder = find_encoder(tiny_model(model_type))
    biased = {kind for (_, kind), linear in encoder.linears() if linear.bias is not None}
    expected = {
        "nomic_bert": "",
        "gte": "Q K V O W2",
        "jina_embeddings_v3": "Q K V O W1 W2",
        "eurobert": "",
    }
    assert biased == set(expected[model_type].split())
    if model_type == "eurobert":
        model = tiny_model(model_type, attention_bias=True, mlp_bias=True)
        assert all(linear.bias is not None for _, linear in find_encoder(model).linears())
