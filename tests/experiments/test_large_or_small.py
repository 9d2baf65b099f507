"""A pruned large model and a fine-tuned small one: both are measured on the same rows, and timed together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgb_lightning.experiments import large_or_small
from pgb_lightning.experiments.fine_tuned import FineTuned

pytestmark = pytest.mark.usefixtures("restored_threads")

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run_sst2(tmp_path: Path, tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]) -> Run:
    """Run the command on a tiny MPNet of four layers and a tiny BERT of two."""

    def run(**settings: Any) -> list[dict[str, Any]]:
        large = tiny_model_folder("mpnet", num_hidden_layers=4)
        given = {"data_options": {"max_length": 32}, "epochs": 1, "refinetuning_epochs": 1, "length": 16}
        return large_or_small.run(
            **{
                "task": "sst2",
                "out_dir": str(tmp_path / "out"),
                "large": str(large),
                "small": str(tiny_model_folder("bert")),
                "kept_parameters": (0.25 * large_or_small.encoder_parameters(str(large)),),
                "data_dir": str(glue_folder("sst2", train=64, validation=40)),
                "repeats": 2,
                "min_time": 0.01,
                **given,
                **settings,
            }
        )

    return run


def test_all_models_have_a_score_a_size_and_a_latency(
    run_sst2: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tmp_path / "answers"
    results = run_sst2(teacher_cache=str(answers))
    assert any(answers.iterdir())
    small, large, pruned = results
    assert [result["method"] for result in results] == ["dense", "dense", "default"]
    assert pruned["parameters"] == pytest.approx(0.25 * large["parameters"], rel=0.05)
    assert pruned["refinetuning"]["logits_weight"] == 1
    assert small["model_name_or_path"] != large["model_name_or_path"]
    assert all(Path(result["checkpoint"]).stat().st_size > 0 for result in results)
    latency = json.loads((tmp_path / "out" / "latency.json").read_text())
    assert latency["seconds"].keys() == {"1 x 16", "8 x 16"}
    for times in latency["seconds"].values():
        assert len(times) == 3
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
    printed = capsys.readouterr().out
    assert all(f"{100 * result['after']['val_accuracy']:.1f}" in printed for result in results)
    for step in ("train", "prune", "recover"):
        monkeypatch.setattr(FineTuned, step, None)  # calling it would fail
    assert run_sst2() == results
    with pytest.raises(ValueError, match=r"out_dir=.*learning_rate=0\.001, not 3e-05"):
        run_sst2(large_learning_rate=1e-3)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kept_parameters": (1e9,)}, r"kept_parameters=1e\+09"),
        ({"recovery": "best"}, "recovery .*'best'"),
        ({"preset": "best"}, "preset .*'best'"),
        ({"large_learning_rate": 0.0}, r"large_learning_rate=0\.0"),
        ({"data_options": {"seed": 1}}, "data_options .*'seed'"),
    ],
)
def test_invalid_settings_raise_before_a_folder_is_made(
    settings: dict[str, Any], match: str, run_sst2: Run, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        run_sst2(**settings)
    assert not (tmp_path / "out").exists()
