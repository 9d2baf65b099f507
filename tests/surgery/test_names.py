"""Encoders, layers and matrices that a module holds under several names, and weights that several layers share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.kinds import MATRICES
from helpers.tiny import MODEL_TYPES, batches, classifier
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from pgb_lightning import MatrixPlan, PruningConfig, PruningPlan, apply_plan, follow_state_dict, prune
from pgb_lightning.calibration.hooks import calibration_hooks
from pgb_lightning.encoders.find import find_encoder, find_encoders
from pgb_lightning.surgery.checks import is_pruned

PATHS = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "mpnet": "encoder.layer",
    "distilbert": "transformer.layer",
}


def backbone_first(net: nn.Module, layers: nn.ModuleList) -> dict[str, nn.Module]:
    return {"backbone": net.base_model, "net": net}


def backbone_last(net: nn.Module, layers: nn.ModuleList) -> dict[str, nn.Module]:
    return {"net": net, "backbone": net.base_model}


def shared_towers(net: nn.Module, layers: nn.ModuleList) -> dict[str, nn.Module]:
    return {"query": net, "document": net}


def lists_of_layers(net: nn.Module, layers: nn.ModuleList) -> dict[str, nn.Module]:
    return {"top": nn.ModuleList(list(layers)[1:]), "net": net, "stack": layers}


def single_layers(net: nn.Module, layers: nn.ModuleList) -> dict[str, nn.Module]:
    return {"net": net, "last": layers[-1], "first": nn.Sequential(layers[0])}


def matrices(net: nn.Module, layers: nn.ModuleList) -> dict[str, nn.Module]:
    linears = [module for module in layers[1].modules() if isinstance(module, nn.Linear)]
    return {"probes": nn.ModuleList(linears), "net": net}


def cores(net: nn.Module, layers: nn.ModuleList) -> dict[str, nn.Module]:
    return {"net": net, "parts": nn.ModuleList(child for layer in layers for child in layer.children())}


WAYS = [backbone_first, backbone_last, shared_towers, lists_of_layers, single_layers, matrices, cores]
Way = Callable[[nn.Module, nn.ModuleList], dict[str, nn.Module]]


def hold(way: Way, model_type: str = "bert", seed: int = 0) -> nn.ModuleDict:
    """Return a module that follows state dicts and holds a classifier, under ``net`` or ``query``, and parts of it."""
    net = classifier(model_type, seed=seed)
    module = nn.ModuleDict(way(net, net.base_model.get_submodule(PATHS[model_type])))
    follow_state_dict(module)
    return module


def outputs(module: nn.ModuleDict) -> Tensor:
    net = module["net"] if "net" in module else module["query"]
    with torch.no_grad():
        return net.eval()(**batches(1, seed=7)[0]).logits  # type: ignore[no-any-return]


def drop_layer_1(module: nn.ModuleDict) -> PruningPlan:
    """Return a plan that drops both sublayers of layer 1 and keeps the rest dense."""
    encoder = find_encoder(module)
    return PruningPlan(
        encoder.model_type,
        tuple(
            MatrixPlan(
                layer, kind, linear.in_features, linear.out_features, *(((), ()) if layer == 1 else (None, None))
            )
            for (layer, kind), linear in encoder.linears()
        ),
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("how", ["default", "paper", "dropped"])
@pytest.mark.parametrize("way", WAYS)
def test_all_names_are_pruned_saved_and_loaded(way: Way, how: str, model_type: str) -> None:
    module = hold(way, model_type)
    before = set(module.state_dict())
    net = module["net"] if "net" in module else module["query"]
    if how == "dropped":
        apply_plan(module, drop_layer_1(module))
    else:
        config = PruningConfig.from_preset(how, pruning_ratio=0.5)
        prune(module, batches(), config, loss=lambda batch: net(**batch).loss)
    state = module.state_dict()
    # All names lead to the tensors of the encoder. A matrix of a dropped sublayer is left as a frozen constant.
    own = {id(parameter) for parameter in net.parameters()}
    assert not [name for name, p in module.named_parameters() if id(p) not in own and p.requires_grad]
    assert all(name in before or name.endswith("_index") for name in state)
    fresh = hold(way, model_type, seed=1)
    for _ in range(2):  # into a dense module, and into a pruned one
        fresh.load_state_dict(state)
        assert fresh.state_dict().keys() == state.keys()
        assert torch.equal(outputs(fresh), outputs(module))


def test_one_encoder_has_all_its_names() -> None:
    module = hold(backbone_first)
    encoder = find_encoder(module)
    assert encoder.names == ["backbone", "net.bert"]
    assert find_encoder(module, "net").names == ["net.bert", "backbone"]


@pytest.mark.parametrize("named", ["backbone", "net", "net.bert"])
def test_any_name_of_the_encoder_can_be_given(named: str) -> None:
    module = hold(backbone_last)
    net = module["net"]
    prune(module, batches(), PruningConfig(), loss=lambda batch: net(**batch).loss, encoder=named)
    assert is_pruned(find_encoder(module))


def bi_encoder(seed: int = 0) -> nn.ModuleDict:
    """Return two models with their own embeddings that share their layers."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        initializer_range=0.2,
    )
    module = nn.ModuleDict({"query": BertModel(config), "document": BertModel(config)}).eval()
    module["document"].encoder = module["query"].encoder
    follow_state_dict(module)
    return module


def similarity(module: nn.ModuleDict, batch: dict[str, Tensor]) -> Tensor:
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    query, document = (module[name](**inputs).last_hidden_state[:, 0] for name in ("query", "document"))
    return (query * document.roll(1, 0)).mean()


def test_models_that_share_their_layers_are_one_encoder() -> None:
    module = bi_encoder()
    assert len(find_encoders(module)) == 1
    prune(module, batches(), PruningConfig(pruning_ratio=0.5), loss=lambda batch: similarity(module, batch))
    assert module["document"].encoder is module["query"].encoder
    fresh = bi_encoder(seed=1)
    fresh.load_state_dict(module.state_dict())
    batch = batches(1, seed=3)[0]
    assert torch.equal(similarity(fresh, batch), similarity(module, batch))


def test_the_mask_of_each_model_counts_for_shared_layers() -> None:
    """Padding of the documents must not count because the queries have none, or the other way round."""
    module, tokens = bi_encoder(), torch.full((2, 5), 3)
    full, short = torch.ones_like(tokens), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    with calibration_hooks(find_encoder(module), {}, None) as calls, torch.enable_grad():
        module["query"](input_ids=tokens, attention_mask=full)
        module["document"](input_ids=tokens, attention_mask=short)
    assert [int(call.token_mask().sum()) for call in calls] == [10, 5]


def tie_layers(module: nn.ModuleDict) -> None:
    module["query"].encoder.layer[1] = module["query"].encoder.layer[0]


def tie_modules(module: nn.ModuleDict) -> None:
    first, second = module["query"].encoder.layer
    second.intermediate.dense = first.intermediate.dense


def tie_weights(module: nn.ModuleDict) -> None:
    first, second = module["query"].encoder.layer
    second.attention.self.query.weight = first.attention.self.key.weight


def tie_a_head(module: nn.ModuleDict) -> None:
    module["head"] = nn.Linear(24, 24)
    module["head"].weight = module["query"].encoder.layer[0].attention.self.key.weight


def share_one_layer(module: nn.ModuleDict) -> None:
    module["document"].encoder = copy.deepcopy(module["query"].encoder)
    module["document"].encoder.layer[0] = module["query"].encoder.layer[0]


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (tie_layers, "Layer 1 Q .*Layer 0 Q"),
        (tie_modules, "Layer 1 W1 .*Layer 0 W1"),
        (tie_weights, "Layer 1 Q .*Layer 0 K"),
        (tie_a_head, "Layer 0 K .*'head'"),
        (share_one_layer, r"'query' and 'document' share layers \[0\]"),
    ],
)
def test_weights_that_cannot_be_pruned_in_one_place_only_are_refused(
    tie: Callable[[nn.ModuleDict], None], message: str
) -> None:
    module = bi_encoder()
    tie(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        prune(module, batches(), encoder="query", loss=lambda batch: similarity(module, batch))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "reparametrize", [nn.utils.weight_norm, lambda m: nn.utils.prune.l1_unstructured(m, "weight", 0.3)]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_that_a_hook_computes_are_refused(reparametrize: Callable[[nn.Module], object]) -> None:
    model = classifier()
    reparametrize(model.bert.encoder.layer[1].output.dense)
    with pytest.raises(ValueError, match=r"Layer 1 W2 .*torch\.nn\.utils\.prune"):
        prune(model, batches())


def test_a_failure_during_compensation_restores_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    module = hold(cores)
    encoder, net = find_encoder(module), module["net"]
    modules = dict(module.named_modules(remove_duplicate=False))
    attributes = {name: set(vars(child)) for name, child in modules.items()}
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pgb_lightning.compensation.fit.SublayerFit._refit_constant", fail)
    monkeypatch.setattr("pgb_lightning.compensation.fit.relative_error", fail)
    with pytest.raises(KeyboardInterrupt):
        prune(module, batches(), PruningConfig(pruning_ratio=0.9), loss=lambda batch: net(**batch).loss)
    assert dict(module.named_modules(remove_duplicate=False)) == modules
    assert {name: set(vars(child)) for name, child in modules.items()} == attributes
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert len(list(encoder.linears())) == 3 * len(MATRICES)
