"""All heads, models without a pooler and own classes: twins, exports, and ``save_pretrained`` of a pruned model."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.heads import CLASSES, DROPS, EVERYTHING, assert_same_outputs, build, build_pruned, removing, run
from helpers.tiny import MODEL_TYPES, batches, classifier
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from pgb_lightning import PruningConfig, apply_plan, dense_twin, follow_state_dict, prune
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_dense, export_huggingface, to_exported
from pgb_lightning.export.registered_models import auto_class
from pgb_lightning.surgery.checks import is_pruned


def load(folder: Path, auto: Any, **settings: Any) -> PreTrainedModel:
    """Load a folder that has every weight."""
    model, info = auto.from_pretrained(folder, output_loading_info=True, attn_implementation="eager", **settings)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model  # type: ignore[no-any-return]


class OwnHead(BertPreTrainedModel):
    """A user's class with an encoder without a pooler."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.out = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, **inputs: Any) -> Any:
        output = self.bert(**inputs)
        output["logits"] = self.out(output.last_hidden_state[:, 0])
        return output


class OwnArguments(BertForSequenceClassification):
    """A user's subclass whose constructor takes more than a configuration."""

    def __init__(self, config: BertConfig, size: int) -> None:
        super().__init__(config)
        self.extra = nn.Linear(size, size)


# ---- all heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "head"), CLASSES)
def test_every_class_is_saved_exported_and_made_dense(model_type: str, head: str, tmp_path: Path) -> None:
    model = build_pruned(model_type, head)
    auto = auto_class(model)
    model.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved", auto)
    assert_same_outputs(saved, model)
    assert saved.config.model_type == f"pgb-lightning-{model_type}"
    assert_same_outputs(load(export_huggingface(model, tmp_path / "exported"), auto), model)
    dense = load(export_dense(saved, tmp_path / "dense"), auto)
    assert type(dense) is type(model)
    assert_same_outputs(dense, model)
    assert model.config.model_type == model_type
    assert not hasattr(model.config, "pgb")


@pytest.mark.parametrize("removed", [DROPS, EVERYTHING], ids=["some", "all"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_dense_model_accepts_the_weights_of_a_pruned_one(model_type: str, removed: Any, tmp_path: Path) -> None:
    model = build_pruned(model_type, "ForSequenceClassification", removed)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes|mismatch"):
        type(model).from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        build(model_type, "ForSequenceClassification").load_state_dict(model.state_dict(), strict=False)


# ---- without a pooler -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet"])
def test_a_model_without_a_pooler_loads_as_it_was(model_type: str, tmp_path: Path) -> None:
    model = build_pruned(model_type, add_pooling_layer=False)
    assert_same_outputs(dense_twin(model), model)
    export_huggingface(model, tmp_path / "out")
    for settings in ({}, {"add_pooling_layer": False}):
        loaded = load(tmp_path / "out", AutoModel, **settings)
        assert loaded.pooler is None
        assert_same_outputs(loaded, model)
        assert_same_outputs(dense_twin(loaded), model)
    assert AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=True).pooler is not None


def test_the_encoder_of_another_head_is_exported_and_a_head_gets_its_pooler(tmp_path: Path) -> None:
    tagger = build_pruned("bert", "ForTokenClassification")
    assert_same_outputs(load(export_huggingface(tagger.bert, tmp_path / "out"), AutoModel), tagger.bert)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").bert.pooler is not None


def test_a_pooler_that_was_removed_stays_away(tmp_path: Path) -> None:
    model = build("bert")
    model.pooler = None
    apply_plan(model, removing(model, DROPS))
    model.save_pretrained(tmp_path)
    assert_same_outputs(load(tmp_path, AutoModel), model)


# ---- classes and models of users --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda c: OwnHead(c), lambda c: OwnArguments(c, size=2)], ids=["head", "arguments"])
def test_own_classes_have_a_twin_and_are_refused_where_they_would_not_load(make: Any, tmp_path: Path) -> None:
    model = make(classifier().config).eval()
    apply_plan(model, removing(model, DROPS))
    twin = dense_twin(model)
    assert type(twin) is type(model)
    assert not is_pruned(find_encoder(twin))
    assert_same_outputs(twin, model)
    twin.save_pretrained(tmp_path / "dense")
    for save in (model.save_pretrained, lambda folder: export_huggingface(model, folder)):
        with pytest.raises(ValueError, match=rf"{type(model).__name__} .*dense_twin\(model\)\.save_pretrained"):
            save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert_same_outputs(load(export_huggingface(model.bert, tmp_path / "encoder"), AutoModel), model.bert)


def test_an_added_module_is_named(tmp_path: Path) -> None:
    model = build_pruned("bert", "ForSequenceClassification")
    model.extra = nn.Linear(2, 2)
    assert_same_outputs(dense_twin(model), model)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        export_huggingface(model, tmp_path / "out")


def test_tied_embeddings_stay_tied_and_untied_ones_are_named(tmp_path: Path) -> None:
    model = build("bert", "ForMaskedLM")
    model.resize_token_embeddings(70)
    apply_plan(model, removing(model, DROPS))
    loaded = load(export_huggingface(model, tmp_path / "out"), auto_class(model))
    for other in (dense_twin(model), to_exported(model), loaded):
        assert other.cls.predictions.decoder.weight is other.bert.embeddings.word_embeddings.weight
        assert_same_outputs(other, model)
    model.cls.predictions.decoder.weight = nn.Parameter(torch.ones(70, 24))
    with pytest.raises(ValueError, match="tie_word_embeddings=False"):
        to_exported(model)
    model.config.tie_word_embeddings = False
    assert_same_outputs(to_exported(model), model)


def test_data_types_and_frozen_parameters_are_kept() -> None:
    model = build_pruned("bert", "ForSequenceClassification").bfloat16()
    model.bert.encoder.layer[0].output.LayerNorm.float()
    model.bert.encoder.layer[0].output.dense.requires_grad_(False)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    twin = dense_twin(model)
    for other in (twin, to_exported(model)):
        assert dtypes.items() <= {name: p.dtype for name, p in other.named_parameters()}.items()
    frozen = {name for name, parameter in twin.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"bert.encoder.layer.0.output.dense.{name}" for name in ("weight", "bias")}


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = BertModel(classifier().config, add_pooling_layer=False)
    apply_plan(model, removing(model, DROPS))
    for other in (dense_twin(model), to_exported(model)):
        assert {parameter.device.type for parameter in other.parameters()} == {"meta"}


# ---- save_pretrained ---------------------------------------------------------------------------------------


def test_copies_pickles_and_followers_are_saved_with_their_own_structure(tmp_path: Path) -> None:
    model = build_pruned("bert", "ForSequenceClassification")
    fresh = BertForSequenceClassification(model.config)
    follow_state_dict(fresh)
    fresh.load_state_dict(model.state_dict())
    made = {"copy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model)), "fresh": fresh}
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    for name, other in made.items():
        other.save_pretrained(tmp_path / name)
        assert_same_outputs(load(tmp_path / name, AutoModelForSequenceClassification), other)


def test_dense_models_are_saved_as_always(tmp_path: Path) -> None:
    config = classifier().config
    pruned, dense = BertForSequenceClassification(config), BertForSequenceClassification(config)
    apply_plan(pruned, removing(pruned, DROPS))
    models = {"same": dense, "later": BertForSequenceClassification(pruned.config), "twin": dense_twin(pruned)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == "bert"
        assert "pgb" not in (tmp_path / name / "config.json").read_text()
    assert b"pgb_lightning" not in pickle.dumps(models["twin"])


def test_an_encoder_inside_a_composite_model_is_recorded(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    decoder = BertConfig(vocab_size=60, is_decoder=True, add_cross_attention=True, **sizes)
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(classifier().config, decoder)).eval()
    plan = removing(model.encoder, DROPS)
    apply_plan(model, plan, encoder="encoder")
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path).eval()
    tokens = torch.randint(2, 60, (2, 7))
    with torch.no_grad():
        outputs = [each(input_ids=tokens, decoder_input_ids=tokens).logits for each in (model, loaded)]
    torch.testing.assert_close(*outputs)
    assert model.config.encoder.model_type == "bert"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_folder_of_0_1_0_loads_in_silence(model_type: str, tmp_path: Path) -> None:
    """It has no empty weights, and the table of MPNet that nothing reads."""
    model = build_pruned(model_type, "ForSequenceClassification", EVERYTHING)
    export_huggingface(model, tmp_path / "out")
    file, config = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "config.json"
    weights = {name: value for name, value in load_file(file).items() if value.numel()}
    if model_type == "mpnet":
        weights["mpnet.encoder.relative_attention_bias.weight"] = torch.zeros(32, 2)
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(config.read_text().replace('"version": 2', '"version": 1'))
    assert_same_outputs(load(tmp_path / "out", AutoModelForSequenceClassification), model)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_trainer_of_transformers_saves_resumes_and_loads_its_best_model(model_type: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = build(model_type, "ForSequenceClassification")
    prune(model, batches(), PruningConfig.from_preset("balanced", pruning_ratio=0.5))
    rows = [{"input_ids": torch.randint(2, 60, (9,)), "labels": torch.tensor(n % 2)} for n in range(16)]
    settings: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "epoch"}

    def trainer(net: PreTrainedModel, epochs: int, **more: Any) -> Trainer:
        arguments = TrainingArguments(output_dir=str(tmp_path), num_train_epochs=epochs, **settings, **more)
        return Trainer(net, arguments, train_dataset=rows, eval_dataset=rows)

    first = trainer(model, 2, eval_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="loss")
    first.train()
    best = first.state.best_model_checkpoint
    assert_same_outputs(load(Path(str(best)), AutoModelForSequenceClassification), model)
    last = tmp_path / f"checkpoint-{first.state.global_step}"
    fresh = build(model_type, "ForSequenceClassification", seed=1)
    follow_state_dict(fresh)
    for net in (load(last, AutoModelForSequenceClassification), fresh):
        second = trainer(net, 3)
        second.train(resume_from_checkpoint=str(last))
        assert second.state.global_step == 6
        second.save_model(str(tmp_path / "final"))
        assert_same_outputs(load(tmp_path / "final", AutoModelForSequenceClassification), net)
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer(build(model_type, "ForSequenceClassification"), 3).train(resume_from_checkpoint=str(last))


def test_hidden_states_of_an_exported_model_have_their_names(tmp_path: Path) -> None:
    model = build_pruned("bert", "ForSequenceClassification")
    model.save_pretrained(tmp_path)
    found = run(load(tmp_path, AutoModelForSequenceClassification), output_hidden_states=True, output_attentions=True)
    assert [entry is None for entry in found.attentions] == [False, True, False]
    assert len(found.hidden_states) == 4
