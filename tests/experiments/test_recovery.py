"""The command that re-finetunes one pruned model in several ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgb_lightning.experiments import recovery
from pgb_lightning.experiments.fine_tuned import FineTuned

pytestmark = pytest.mark.usefixtures("restored_threads")

Inputs = dict[str, str]


def arguments(sst2: Inputs, **settings: Any) -> dict[str, Any]:
    given = {name: value for name, value in sst2.items() if name != "model_name_or_path"}
    return {**given, "ratio": 0.5, "epochs": 2, **settings}


def test_variants_start_from_the_same_pruned_model_and_are_reused(
    sst2: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = ("finetune", "logits only", "one epoch")
    given = arguments(sst2, variants=variants, out=str(tmp_path / "out.jsonl"), markdown=True)
    results = recovery.run(**given)
    printed = capsys.readouterr().out
    assert [result["recovery"] for result in results] == list(variants)
    assert all(result["before"] == results[0]["before"] for result in results)
    assert len({result["after"]["val_loss"] for result in results}) == 3
    assert [result["refinetuning_settings"]["epochs"] for result in results] == [2, 2, 1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line][2:]
    assert [row[:6] for row in rows] == [
        ["finetune", "3e-05", "2", "1", "0", "0"],
        ["logits only", "0.0001", "2", "0", "1", "0"],
        ["one epoch", "0.0001", "1", "0", "1", "1"],
    ]
    assert [row[6] for row in rows] == [f"{100 * result['after']['val_accuracy']:.1f}" for result in results]
    monkeypatch.setattr(FineTuned, "prune", None)  # calling it would fail
    assert recovery.run(**given) == results


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"variants": ("best",)}, r"variants .*'best'.*'finetune', 'distill'"),
        ({"method": "best"}, r"method .*'best'.*'default'"),
        ({"ratio": 1.0}, r"pruning_ratio=1\.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"ckpt_path": "missing.ckpt"}, r"ckpt_path=.*missing\.ckpt"),
        ({"seed": (0, 1)}, r"seed=\[0, 1\]"),
        ({"data_options": {"seed": 1}}, "data_options .*'seed'"),
    ],
)
def test_invalid_settings_raise(settings: dict[str, Any], match: str, sst2: Inputs) -> None:
    with pytest.raises(ValueError, match=match):
        recovery.run(**arguments(sst2, **settings))
