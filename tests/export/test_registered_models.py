"""The registered model types and the checks of what they load."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.plans import random_plan
from helpers.tiny import classifier, logits, pruned
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pgb_lightning import apply_plan
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_huggingface, to_exported
from pgb_lightning.export.registered_models import AUTO_CLASSES, auto_class, exported_class
from pgb_lightning.surgery.from_state_dict import StructureError

KEY = "bert.encoder.layer.0.intermediate.dense"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a pruned model all of whose matrices are grouped."""
    model = classifier("bert")
    apply_plan(model, random_plan(find_encoder(model), random.Random(0), forms=("groups",)))
    return export_huggingface(model, tmp_path_factory.mktemp("exported") / "out")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """Copy the exported folder, for tests that edit it."""
    return Path(shutil.copytree(exported, tmp_path / "out"))


def edit_structure(folder: Path, edit: Callable[[list[dict[str, str]]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config["pgb"]["layers"])
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_head_that_transformers_knows_is_registered(model_type: str) -> None:
    dense, made = CONFIG_MAPPING[model_type], AutoConfig.for_model(f"pgb-lightning-{model_type}")
    assert made.pgb is None
    assert isinstance(made, dense)
    assert CONFIG_MAPPING[made.model_type] is type(made)
    heads = [auto for auto in AUTO_CLASSES.values() if dense in auto._model_mapping]
    assert AutoModel in heads
    for auto in heads:
        exported = auto._model_mapping[type(made)]
        assert exported.config_class is type(made)
        assert exported.dense_class is auto._model_mapping[dense]
        assert pickle.loads(pickle.dumps(exported)) is exported
    assert pickle.loads(pickle.dumps(type(made))) is type(made)


def test_importing_the_package_imports_no_model() -> None:
    program = (
        "import sys, pgb_lightning; from transformers import AutoConfig, AutoModel;"
        "print([name for name in sys.modules if 'models.' in name and '.auto' not in name and 'transformers' in name]);"
        "AutoModel.from_config(AutoConfig.for_model('pgb-lightning-electra', hidden_size=8, num_attention_heads=2));"
        "print([name for name in sys.modules if '.modeling_' in name and 'models.' in name and '.auto' not in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "['transformers.models.electra.modeling_electra']"]


def test_the_exported_class_is_found_by_its_dense_class() -> None:
    exported = exported_class(BertModel)
    assert exported.__name__ == "PGBBertModel"
    assert issubclass(exported, BertModel)
    assert exported.dense_class is BertModel
    assert auto_class(classifier()) is AutoModelForSequenceClassification
    assert auto_class(BertModel(classifier().config)) is AutoModel


def test_a_subclass_of_a_transformers_model_is_refused() -> None:
    class Own(BertModel):
        """A subclass that transformers does not know."""

    with pytest.raises(ValueError, match=r"Own\b.*BertModel"):
        to_exported(Own(classifier().config))


def test_the_folder_may_be_given_by_name(exported: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(pretrained_model_name_or_path=exported)
    assert torch.equal(logits(type(model).from_pretrained(pretrained_model_name_or_path=exported)), logits(model))


def test_a_loaded_model_pickles(exported: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(exported)
    assert torch.equal(logits(pickle.loads(pickle.dumps(loaded))), logits(loaded))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda layers: layers[0].pop("W1"), rf"{KEY}\.weight .*\(\d, \d+, \d+\).*\(96, 24\)"),
        (lambda layers: layers[0].update(W1="1x24x96"), rf"{KEY}\.input_index .*\(\d, \d+\).*\(1, 24\)"),
        (lambda layers: layers[0].update(W1="gone", W2="gone"), r"layer\.0\.\S+ .*config\.json"),
        (lambda layers: layers[0].clear(), r"bert\.encoder\.layer\.0\.\S+ .*\(\d, \d+, \d+\)"),
    ],
)
def test_an_edited_structure_is_refused(folder: Path, edit: Callable[..., object], message: str) -> None:
    edit_structure(folder, edit)
    with pytest.raises(StructureError, match=message) as raised:
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert "\n" not in str(raised.value)


def test_a_record_that_cannot_be_read_is_refused(folder: Path) -> None:
    edit_structure(folder, lambda layers: layers.pop())
    with pytest.raises(ValueError, match=r"pgb .*\b2 layers.*\b3\b"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("name", ["weight", "bias", "input_index", "output_index"])
def test_a_missing_tensor_is_named(name: str, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop(f"{KEY}.{name}"))
    with pytest.raises(StructureError, match=rf"{KEY}\.{name} is missing"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_missing_embeddings_are_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("bert.embeddings.word_embeddings.weight"))
    with pytest.raises(StructureError, match=r"bert\.embeddings\.word_embeddings\.weight is missing"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_refused_even_with_ignore_mismatched_sizes(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({f"{KEY}.weight": torch.zeros(2, 12, 47)}))
    with pytest.raises(StructureError, match=rf"{KEY}\.weight .*\(2, 12, 47\)"):
        AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_an_index_outside_the_matrix_is_refused(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights[f"{KEY}.input_index"].fill_(24))
    with pytest.raises(StructureError, match=KEY):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.slow
def test_export_and_report_import_no_heavy_library() -> None:
    program = "import sys, pgb_lightning.export, pgb_lightning.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"lightning", "datasets", "torchmetrics", "onnx", "onnxruntime", "onnxscript", "pandas", "matplotlib"}
    assert not heavy & set(done.stdout.split())


def test_weights_that_are_not_finite_are_exported_as_they_are(tmp_path: Path) -> None:
    model = pruned("bert")
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    loaded = AutoModelForSequenceClassification.from_pretrained(export_huggingface(model, tmp_path / "out"))
    assert loaded.classifier.bias.isnan().tolist() == [True, False]
