"""Models of sentence-transformers keep what their folder says about prompts, outputs and texts."""

from __future__ import annotations

import json
import locale
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import quiet_trainer
from helpers.text_tables import reviews, write
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.datamodules import SentencesDataModule, TextDataModule
from pgb_lightning.export import command
from pgb_lightning.modules import SentenceEmbedding, TextClassification
from pgb_lightning.modules.sentence_files import read_sentence_files, write_json

FineTuned = Callable[..., Path]

#: What sentence-transformers writes for each kind of model.
FILES: dict[str, dict[str, Any]] = {
    "embedder": {
        "modules.json": [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}],
        "1_Pooling/config.json": {"embedding_dimension": 24, "pooling_mode": "mean", "include_prompt": False},
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "query: ", "document": "passage: "},
            "default_prompt_name": "query",
            "similarity_fn_name": "dot",
            "truncate_dim": 8,
        },
        "sentence_bert_config.json": {"max_seq_length": 40, "do_lower_case": True},
    },
    "cross-encoder": {
        "modules.json": [{"path": "", "type": "a.Transformer"}],
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.linear.Identity",
            "prompts": {"q": "find: "},
        },
        "sentence_bert_config.json": {"transformer_task": "sequence-classification", "module_output_name": "scores"},
    },
}


@pytest.fixture(params=FILES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tiny_model_folder: FineTuned, fine_tuned: FineTuned, tmp_path: Path) -> Path:
    """Return the folder of a model of sentence-transformers."""
    source = tiny_model_folder("bert") if kind == "embedder" else fine_tuned(num_labels=1)
    folder = shutil.copytree(source, tmp_path / "copy")
    write_json(folder, FILES[kind])
    return folder


def prune_checkpoint(kind: str, folder: Path, tmp_path: Path) -> str:
    """Prune the model and return its checkpoint."""
    rows = str(write(tmp_path / "rows.csv", reviews()))
    module: Any = SentenceEmbedding(str(folder)) if kind == "embedder" else TextClassification(str(folder))
    data: Any = SentencesDataModule if kind == "embedder" else TextDataModule
    table = data(rows, str(folder), max_length=32, batch_size=4, use_labels=False)
    trainer = quiet_trainer(max_epochs=0, limit_val_batches=0, callbacks=[PGBCallback(0.5)])
    trainer.fit(module, datamodule=table)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    return str(tmp_path / "pruned.ckpt")


def stored(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_an_exported_checkpoint_does_not_need_the_folder_of_the_model(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_folder(model: Any, target: str, *_: Any) -> Path:
        Path(target).mkdir()
        return Path(target)

    path = prune_checkpoint(kind, folder, tmp_path)
    shutil.rmtree(folder)
    monkeypatch.setattr(command, "export_onnx", make_folder)
    for format in ("huggingface", "onnx"):
        out = tmp_path / format
        command.run_export(path, str(out), format)  # type: ignore[arg-type]
        for name in ("config_sentence_transformers.json", "sentence_bert_config.json"):
            assert stored(out, name) == FILES[kind][name]
        parts = [part["type"].rpartition(".")[2] for part in stored(out, "modules.json")]
        assert parts == [part["type"].rpartition(".")[2] for part in FILES[kind]["modules.json"]]
        if kind == "embedder":
            pooling = stored(out, "1_Pooling/config.json")
            assert pooling["pooling_mode_mean_tokens"]
            assert pooling["include_prompt"] is False


@pytest.mark.parametrize("name", ["sentence_roberta_config.json", "sentence_distilbert_config.json"])
def test_the_longest_text_is_read_from_former_files(name: str, tiny_model_folder: FineTuned, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_folder("bert"), tmp_path / "copy")
    write_json(folder, {**FILES["embedder"], name: {"max_seq_length": 21}})
    (folder / "sentence_bert_config.json").unlink()
    SentenceEmbedding(str(folder)).write_companion_files(tmp_path / "out")
    assert stored(tmp_path / "out", "sentence_bert_config.json") == {"max_seq_length": 21}


def test_files_are_read_in_utf_8_in_any_locale(tiny_model_folder: FineTuned, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_folder("bert"), tmp_path / "copy")
    files = {**FILES["embedder"], "config_sentence_transformers.json": {"prompts": {"query": "为这个句子："}}}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        found = read_sentence_files(str(folder))
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert found["config_sentence_transformers.json"] == files["config_sentence_transformers.json"]


def test_a_classifier_does_not_take_the_files_of_an_embedder(tiny_model_folder: FineTuned, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_folder("bert"), tmp_path / "copy")
    write_json(folder, FILES["embedder"])
    assert TextClassification(str(folder), num_labels=2).companion_files == {}


def test_a_cross_encoder_with_other_parts_is_refused(fine_tuned: FineTuned, tmp_path: Path) -> None:
    folder = shutil.copytree(fine_tuned(num_labels=1), tmp_path / "copy")
    parts = [*FILES["cross-encoder"]["modules.json"], {"path": "1_Dense", "type": "a.Dense"}]
    write_json(folder, {**FILES["cross-encoder"], "modules.json": parts})
    with pytest.raises(MisconfigurationException, match=r"model_name_or_path=.*Transformer, Dense in modules\.json"):
        TextClassification(str(folder))
