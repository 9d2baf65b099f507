"""`pgb export`, as typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, pipeline

from pgb_lightning.cli.main import main
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import command
from pgb_lightning.modules import TextClassification
from pgb_lightning.surgery.checks import is_pruned


def test_a_hugging_face_folder_is_the_default(pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = pruned_checkpoint("classifier")
    main(["export", "--ckpt_path", str(path), "--output_dir", str(tmp_path / "out")])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    module = TextClassification.load_from_checkpoint(path, weights_only=True)
    stored = module.model.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())
    assert (tmp_path / "out" / "plan.json").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on sst2, pruned" in card
    assert "| val_accuracy | 0.875 |" in card
    assert pipeline("text-classification", str(tmp_path / "out"), device="cpu")("a good film")[0]["score"] > 0.5


def test_an_exported_model_is_fine_tuned_again(pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    main(["export", "--ckpt_path", str(pruned_checkpoint()), "--output_dir", str(tmp_path / "out")])
    module = TextClassification(str(tmp_path / "out"), task="sst2")
    assert is_pruned(find_encoder(module))
    hparams = dict(module.hparams)
    again = TextClassification(**hparams)
    again.load_state_dict(module.state_dict())
    assert hparams["hf_config"]["model_type"] == "pgb-lightning-bert"


def test_a_dense_twin(pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    main(
        [
            "export",
            "--ckpt_path",
            str(pruned_checkpoint("reader")),
            f"--output_dir={tmp_path / 'out'}",
            "--format=dense",
        ]
    )
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert loaded.config.model_type == "bert"
    assert not is_pruned(find_encoder(loaded))


def test_int8(pruned_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    words = ["--format", "onnx", "--quantize", "int8"]
    main(["export", "--ckpt_path", str(pruned_checkpoint()), "--output_dir", str(tmp_path / "out"), *words])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} <= files
    assert [path.name for path in (tmp_path / "out" / "onnx").iterdir()] == ["model_quantized.onnx"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt_path", "no.ckpt"], r"^pgb: ckpt_path='no\.ckpt' is not a file"),
        (["--quantize", "int8"], r"^pgb: quantize='int8' goes with format='onnx', not with 'huggingface'"),
        (["--output_dir", "full"], r"^pgb: output_dir='full' is a folder with files in it"),
    ],
)
def test_a_wrong_setting_ends_in_one_line(
    words: list[str],
    message: str,
    pruned_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    with pytest.raises(SystemExit, match=message) as stop:
        main(["export", "--ckpt_path", str(pruned_checkpoint()), "--output_dir", "out", *words])
    assert "\n" not in str(stop.value.code)
    assert not Path("out").exists()


def test_onnx_without_its_packages_ends_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("ONNX export needs onnx; install it")

    monkeypatch.setattr(command, "require_onnx", missing)
    with pytest.raises(SystemExit, match=r"^pgb: ONNX export needs onnx; install it"):
        main(["export", "--ckpt_path", "no.ckpt", "--output_dir", str(tmp_path / "out"), "--format", "onnx"])


def test_an_unknown_format_is_the_parsers_business(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", "--ckpt_path", "a.ckpt", "--output_dir", "out", "--format", "tf"])
    assert stop.value.code == 2
    assert "'huggingface', 'dense', 'onnx'" in capsys.readouterr().err


def test_help_mentions_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["--help"], "export Write a pruned checkpoint as a folder"),
        (["export", "--help"], "--ckpt_path CKPT_PATH"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code
        assert expected in " ".join(capsys.readouterr().out.split())
