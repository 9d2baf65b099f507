"""The command ``pgb export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, pipeline

from pgb_lightning.cli.main import main
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import command
from pgb_lightning.modules import TextClassification
from pgb_lightning.surgery.checks import is_pruned


def test_the_default_is_a_hugging_face_folder(pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = pruned_checkpoint("classifier")
    main(["export", "--ckpt_path", str(path), "--output_dir", str(tmp_path / "out")])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    module = TextClassification.load_from_checkpoint(path, weights_only=True)
    stored = module.model.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())
    assert (tmp_path / "out" / "plan.json").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sst2" in card
    assert "| val_accuracy | 0.875 |" in card
    assert pipeline("text-classification", str(tmp_path / "out"), device="cpu")("a good film")[0]["score"] > 0.5


def test_an_exported_model_can_be_fine_tuned(pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    main(["export", "--ckpt_path", str(pruned_checkpoint()), "--output_dir", str(tmp_path / "out")])
    module = TextClassification(str(tmp_path / "out"), task="sst2")
    assert is_pruned(find_encoder(module))
    hparams = dict(module.hparams)
    again = TextClassification(**hparams)
    again.load_state_dict(module.state_dict())
    assert hparams["hf_config"]["model_type"] == "pgb-lightning-bert"


def test_a_dense_twin(pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    main(["export", "--ckpt_path", str(pruned_checkpoint("reader")), f"--output_dir={folder}", "--format=dense"])
    loaded = AutoModelForQuestionAnswering.from_pretrained(folder)
    assert loaded.config.model_type == "bert"
    assert not is_pruned(find_encoder(loaded))


@pytest.mark.parametrize(
    ("format", "quantize", "is_calibrated"),
    [
        ("onnx", None, False),
        ("onnx", "int8", True),
        ("onnx", "int8-dynamic", False),
        ("openvino", None, False),
        ("openvino", "int8", True),
    ],
)
def test_runtimes(
    format: str,
    quantize: str | None,
    is_calibrated: bool,
    pruned_checkpoint: Callable[..., Path],
    glue_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check the arguments only; the tests of each format test what is written, and tracing is slow."""
    calls: list[tuple[Any, ...]] = []

    def export(model: Any, folder: str, *rest: Any) -> Path:
        calls.append((model, folder, *rest))
        return tmp_path

    monkeypatch.setattr(command, f"export_{format}", export)
    monkeypatch.setattr(command, f"require_{format}", lambda: None)
    arguments = ["--output_dir", str(tmp_path / "out"), "--format", format]
    arguments += [] if quantize is None else ["--quantize", quantize]
    arguments += ["--calibration", str(glue_folder("sst2") / "train.parquet")] if is_calibrated else []
    main(["export", "--ckpt_path", str(pruned_checkpoint()), *arguments])
    [(model, folder, tokenizer, card, given, calibration)] = calls
    assert is_pruned(find_encoder(model))
    assert (folder, card.task, given) == (str(tmp_path / "out"), "sst2", quantize)
    assert tokenizer is not None
    if is_calibrated:
        assert sum(len(batch["input_ids"]) for batch in calibration) == 100
    else:
        assert calibration is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "no.ckpt"], r"^pgb: ckpt_path='no\.ckpt'"),
        (["--quantize", "int8"], r"^pgb: quantize='int8' .*format='onnx'.*'huggingface'"),
        (
            ["--format", "openvino", "--quantize", "int8-dynamic"],
            r"^pgb: quantize='int8-dynamic' .*format='onnx'.*'openvino'",
        ),
        (["--format", "openvino", "--quantize", "int8"], r"^pgb: quantize='int8'.*'openvino'.*calibration=None"),
        (["--format", "onnx", "--quantize", "int8"], r"^pgb: quantize='int8'.*calibration=None.*'int8-dynamic'"),
        (["--calibration", "a.csv"], r"^pgb: calibration='a\.csv'.*'huggingface'.*quantize=None"),
        (
            ["--format", "openvino", "--quantize", "int8", "--calibration", "a.csv"],
            r"^pgb: calibration='a\.csv' is not a file",
        ),
        (["--output_dir", "full"], r"^pgb: output_dir='full'"),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line(
    arguments: list[str],
    message: str,
    pruned_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    with pytest.raises(SystemExit, match=message) as stop:
        main(["export", "--ckpt_path", str(pruned_checkpoint()), "--output_dir", "out", *arguments])
    assert "\n" not in str(stop.value.code)
    assert not Path("out").exists()


def test_missing_onnx_packages_are_reported_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("onnx is missing")

    monkeypatch.setattr(command, "require_onnx", missing)
    with pytest.raises(SystemExit, match=r"^pgb: onnx is missing"):
        main(["export", "--ckpt_path", "no.ckpt", "--output_dir", str(tmp_path / "out"), "--format", "onnx"])


def test_an_unknown_format_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", "--ckpt_path", "a.ckpt", "--output_dir", "out", "--format", "tf"])
    assert stop.value.code == 2
    assert "'huggingface', 'dense', 'onnx', 'openvino'" in capsys.readouterr().err


def test_the_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--help"], "export Export a pruned"),
        (["export", "--help"], "--ckpt_path CKPT_PATH"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code
        assert expected in " ".join(capsys.readouterr().out.split())
