"""Answers in the official format, whole under ddp, and never over others unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import quiet_trainer, squad_folder
from helpers.own import OwnModule, make_loader
from helpers.processes import run
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.callbacks import AnswerWriter
from pgb_lightning.datamodules import SQuADDataModule
from pgb_lightning.modules import QuestionAnswering

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tiny_model_folder: Folder) -> str:
    return str(tiny_model_folder("bert", max_position_embeddings=130))


def data_of(model: str, folder: Path, version: str) -> SQuADDataModule:
    return SQuADDataModule(model, version, str(folder), max_length=100, stride=16)


def test_two_processes_write_and_score_what_one_does(model: str, tmp_path: Path) -> None:
    # 21 questions in windows that the processes cannot share evenly: one is given out twice.
    rows = squad_folder(tmp_path / "rows", "2.0", validation=21)
    found: list[Any] = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        run("programs/ddp_answers.py", model, rows, folder, devices)
        found.append(
            [json.loads((folder / f"{name}.json").read_text()) for name in ("predictions", "null_odds", "scores")]
        )
    (answers, odds, scores), (shared_answers, shared_odds, shared_scores) = found
    assert answers == shared_answers
    assert odds == pytest.approx(shared_odds, abs=1e-4)
    assert scores == pytest.approx(shared_scores, abs=1e-4)
    assert set(answers) == {f"id{number}" for number in range(21)}


def test_version_1_answers_every_question(model: str, tmp_path: Path) -> None:
    data = data_of(model, squad_folder(tmp_path / "rows"), "1.1")
    writer = AnswerWriter(str(tmp_path / "new" / "folder"))
    quiet_trainer(callbacks=[writer]).predict(QuestionAnswering(model), datamodule=data)
    answers = json.loads((tmp_path / "new" / "folder" / "predictions.json").read_text())
    contexts = dict(zip(data.examples("validation")["id"], data.examples("validation")["context"], strict=True))
    assert all(text and text in contexts[number] for number, text in answers.items())
    assert not (tmp_path / "new" / "folder" / "null_odds.json").exists()


def test_what_cannot_be_written_is_refused_first(model: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text("{}")
    data = data_of(model, squad_folder(tmp_path / "rows"), "1.1")
    module = QuestionAnswering(model)
    with pytest.raises(MisconfigurationException, match="is there already; remove it, give another output_dir"):
        quiet_trainer(callbacks=[AnswerWriter(str(tmp_path))]).predict(module, datamodule=data)
    quiet_trainer(callbacks=[AnswerWriter(str(tmp_path), overwrite=True)]).predict(module, datamodule=data)
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 20
    with pytest.raises(MisconfigurationException, match=r"needs a QuestionAnswering .* not OwnModule and NoneType"):
        quiet_trainer(callbacks=[AnswerWriter(str(tmp_path))]).predict(OwnModule(), make_loader(8))


def test_answers_to_some_questions_replace_no_file(model: str, tmp_path: Path) -> None:
    data = data_of(model, squad_folder(tmp_path / "rows", "2.0"), "2.0")
    module = QuestionAnswering(model, version="2.0")
    quiet_trainer(callbacks=[AnswerWriter(str(tmp_path))]).predict(module, datamodule=data)
    whole = (tmp_path / "predictions.json").read_text()
    data.eval_batch_size = 4
    some = quiet_trainer(limit_predict_batches=2, callbacks=[AnswerWriter(str(tmp_path), overwrite=True)])
    with pytest.warns(UserWarning, match=r"predictions.json is not written: only 8 of the \d+ windows"):
        some.predict(module, datamodule=data)
    assert (tmp_path / "predictions.json").read_text() == whole
    (tmp_path / "predictions.json").unlink()
    with pytest.raises(MisconfigurationException, match=r"null_odds.json is there already"):
        quiet_trainer(callbacks=[AnswerWriter(str(tmp_path))]).predict(module, datamodule=data)
