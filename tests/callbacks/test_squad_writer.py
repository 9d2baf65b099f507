"""Answers in the official format: complete under ddp, and never replacing files unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.fakes import quiet_trainer, squad_folder
from helpers.own import OwnModule, make_loader
from helpers.programs import ddp_answers
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.callbacks import AnswerWriter
from pgb_lightning.datamodules import SQuADDataModule
from pgb_lightning.modules import QuestionAnswering


def make_data(model: str, folder: Path, version: str) -> SQuADDataModule:
    return SQuADDataModule(model, version, str(folder), max_length=100, stride=16)


@pytest.mark.slow
def test_two_processes_write_and_score_what_one_does(
    two_processes: Path, squad_model: str, squad_rows: Path, tmp_path: Path
) -> None:
    ddp_answers.main(tmp_path, squad_model, str(squad_rows), devices=1)
    names = ("predictions", "null_odds", "scores")
    answers, odds, scores = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
    found = [json.loads((two_processes / "answers" / f"{name}.json").read_text()) for name in names]
    assert found[0] == answers
    assert found[1] == pytest.approx(odds, abs=1e-4)
    assert found[2] == pytest.approx(scores, abs=1e-4)
    assert set(answers) == {f"id{number}" for number in range(21)}


def test_version_1_answers_every_question(squad_model: str, tmp_path: Path) -> None:
    data = make_data(squad_model, squad_folder(tmp_path / "rows"), "1.1")
    writer = AnswerWriter(str(tmp_path / "new" / "folder"))
    quiet_trainer(callbacks=[writer]).predict(QuestionAnswering(squad_model), datamodule=data)
    answers = json.loads((tmp_path / "new" / "folder" / "predictions.json").read_text())
    contexts = dict(zip(data.examples("validation")["id"], data.examples("validation")["context"], strict=True))
    assert all(text and text in contexts[number] for number, text in answers.items())
    assert not (tmp_path / "new" / "folder" / "null_odds.json").exists()


def test_existing_files_and_other_data_are_refused(squad_model: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text("{}")
    data = make_data(squad_model, squad_folder(tmp_path / "rows"), "1.1")
    module = QuestionAnswering(squad_model)
    with pytest.raises(MisconfigurationException, match=r"predictions\.json.*overwrite"):
        quiet_trainer(callbacks=[AnswerWriter(str(tmp_path))]).predict(module, datamodule=data)
    quiet_trainer(callbacks=[AnswerWriter(str(tmp_path), overwrite=True)]).predict(module, datamodule=data)
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 20
    with pytest.raises(MisconfigurationException, match=r"OwnModule and NoneType"):
        quiet_trainer(callbacks=[AnswerWriter(str(tmp_path))]).predict(OwnModule(), make_loader(8))


def test_incomplete_answers_are_not_written(squad_model: str, tmp_path: Path) -> None:
    data = make_data(squad_model, squad_folder(tmp_path / "rows", "2.0"), "2.0")
    module = QuestionAnswering(squad_model, version="2.0")
    quiet_trainer(callbacks=[AnswerWriter(str(tmp_path))]).predict(module, datamodule=data)
    complete = (tmp_path / "predictions.json").read_text()
    data.eval_batch_size = 4
    some = quiet_trainer(limit_predict_batches=2, callbacks=[AnswerWriter(str(tmp_path), overwrite=True)])
    with pytest.warns(UserWarning, match=r"predictions\.json.*\b8 of\b"):
        some.predict(module, datamodule=data)
    assert (tmp_path / "predictions.json").read_text() == complete
    (tmp_path / "predictions.json").unlink()
    with pytest.raises(MisconfigurationException, match=r"null_odds\.json"):
        quiet_trainer(callbacks=[AnswerWriter(str(tmp_path))]).predict(module, datamodule=data)


def test_a_diverged_model_is_refused(squad_model: str, tmp_path: Path) -> None:
    data = make_data(squad_model, squad_folder(tmp_path / "rows"), "1.1")
    module = QuestionAnswering(squad_model)
    module.model.qa_outputs.bias.data.fill_(float("nan"))
    with pytest.raises(MisconfigurationException, match="NaN"):
        quiet_trainer(callbacks=[AnswerWriter(str(tmp_path / "out"))]).predict(module, datamodule=data)
    assert not (tmp_path / "out").exists()
