"""Sizes and speedups of published encoders, here with a few tiny layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pgb_lightning.benchmark.configurations import PUBLISHED, full_size_config
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.experiments import families
from pgb_lightning.experiments.families import NAMES

TINY: dict[str, int] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QUICK: dict[str, Any] = {"num_layers": 2, "repeats": 1, "min_time": 0.001, "num_samples": 6, "settings": TINY}
AVAILABLE = [name for name in PUBLISHED if PUBLISHED[name].model_type in FAMILIES]


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("name", AVAILABLE)
def test_every_encoder_is_pruned_and_measured(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "families.json"
    heads = {"num_key_value_heads": 2} if name == "EuroBERT-610m" else {}
    settings = QUICK | {"settings": TINY | heads, "sizes": ((2, 16), (1, 100_000)), "num_threads": 1, "out": str(out)}
    found = families.run(names=(name,), **settings)
    assert json.loads(out.read_text()) == found
    assert found["machine"]["threads"] == 1
    [encoder] = found["encoders"]
    assert (encoder["name"], encoder["model_type"]) == (name, PUBLISHED[name].model_type)
    assert list(encoder["pruned"]) == ["default 0.5", "default 0.88", "narrow 0.5", "narrow 0.88"]
    for model, pruned in encoder["pruned"].items():  # narrow models of this width keep at least one head of two or four
        assert pruned["removed"] == pytest.approx(float(model.split()[1]), abs=0.06 if "narrow" in model else 0.02)
        assert pruned["weights"] == round((1 - pruned["removed"]) * encoder["encoder_weights"])
    [row] = encoder["latency"]  # no encoder takes 100,000 tokens
    assert (row["batch_size"], row["length"], row["mode"]) == (2, 16, "eager")
    narrow, dense = row["models"]["narrow 0.5"], row["models"]["dense"]
    assert narrow["flops_kept"] == pytest.approx(0.5, abs=0.05)
    assert narrow["speedup"] == pytest.approx(dense["seconds"] / narrow["seconds"])
    saved = 1 - narrow["seconds"] / dense["seconds"]
    assert narrow["realized"] == pytest.approx(saved / (1 - narrow["flops_kept"]))
    lines = out.with_suffix(".md").read_text().splitlines()
    assert lines[0] == "| encoder | model | removed | 2 x 16 |"
    assert lines[2].startswith(f"| {name} | dense | of ")
    assert lines[5].endswith(f"| {narrow['speedup']:.2f} ({100 * narrow['realized']:.0f} %) |")
    assert "narrow 0.88" in capsys.readouterr().out


def test_several_encoders_and_compiled_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compiled.append(model) or model)  # type: ignore[func-returns-value]
    settings = QUICK | {"plans": ("narrow",), "pruning_ratios": (0.5,), "compiled": True}
    out = tmp_path / "found.json"
    found = families.run(names=("bert", "ModernBERT-base"), sizes=((1, 8), (1, 600)), out=str(out), **settings)
    assert [(e["name"], len(e["latency"])) for e in found["encoders"]] == [("bert", 2), ("ModernBERT-base", 4)]
    assert len(compiled) == 4
    header, _, *rows = out.with_suffix(".md").read_text().splitlines()
    assert header == "| encoder | model | removed | 1 x 8 | 1 x 8, compiled | 1 x 600 | 1 x 600, compiled |"
    assert [row.count("|") for row in rows] == [8] * 4
    assert rows[0].endswith(" ms |  |  |")  # BERT takes up to 512 tokens


def test_names_are_published_encoders_of_the_stated_sizes() -> None:
    assert {*NAMES} < {*PUBLISHED}
    sizes = {name: full_size_config(name) for name in AVAILABLE}
    assert all(config.hidden_size == 768 for name, config in sizes.items() if name in NAMES)
    assert full_size_config("distilbert", 3).num_hidden_layers == 3
    assert full_size_config("bert", None, hidden_size=24).hidden_size == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ("bert-base", "bort")}, r"architecture='bort' .*bert, .*ModernBERT-base"),
        ({"pruning_ratios": (1.5,)}, r"pruning_ratio=1\.5"),
        ({"sizes": ()}, r"sizes=\[\]"),
        ({"sizes": ((8, 0),)}, r"sizes=\[\(8, 0\)\]"),
    ],
)
def test_invalid_settings_raise_before_a_model_is_made(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "random_model", None)
    with pytest.raises(ValueError, match=message):
        families.run(out=str(tmp_path / "new" / "found.json"), **settings)
    assert not (tmp_path / "new").exists()
