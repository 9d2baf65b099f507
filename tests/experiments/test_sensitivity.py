"""The sensitivity to τ and G_max: equal sizes, resumable, in a table and a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgb_lightning.experiments import sensitivity
from pgb_lightning.experiments.dense_reference import DenseReference

pytestmark = pytest.mark.usefixtures("restored_threads")


@pytest.fixture
def measure(sst2: dict[str, str], reference: DenseReference, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command on the shared calibration."""

    def load(**settings: object) -> DenseReference:
        assert {name: settings[name] for name in sst2} == sst2
        return reference

    monkeypatch.setattr(DenseReference, "load", load)
    return lambda **settings: sensitivity.run(**sst2, **settings)


def test_models_of_a_ratio_have_the_same_size_at_every_threshold(
    measure: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {
        "ratios": (0.3, 0.6),
        "thresholds": 3,
        "max_groups": (2, 6),
        "results": str(tmp_path / "results.jsonl"),
        "out": str(tmp_path / "sensitivity.svg"),
    }
    found = measure(**settings)
    assert [(one["ratio"], one["max_groups"], one["rank"]) for one in found] == [
        (ratio, *rest) for ratio in (0.3, 0.6) for rest in ((6, 0.0), (6, 0.5), (6, 1.0), (6, None), (2, None))
    ]
    for one in found:
        assert one["removed"] == pytest.approx(one["ratio"], abs=0.02)
        assert one["attention"] + one["ffn"] == pytest.approx(100 * one["removed"])
        assert one["divergence"] >= 0
    smallest, _, largest, automatic, _ = found[5:]
    assert smallest["threshold"] < largest["threshold"]
    assert smallest["attention"] < largest["attention"]
    assert smallest["threshold"] <= automatic["threshold"] <= largest["threshold"]
    assert "<svg" in (tmp_path / "sensitivity.svg").read_text()
    assert capsys.readouterr().out.count("(auto)") == 4

    def no_load(**_: object) -> DenseReference:
        raise AssertionError

    monkeypatch.setattr(DenseReference, "load", no_load)
    assert measure(**settings) == found


def test_every_ratio_is_drawn() -> None:
    values = {
        "max_groups": sensitivity.MAX_GROUPS,
        "threshold": 0.1,
        "score": 90.0,
        "divergence": 0.1,
        "attention": 5.0,
    }
    ratios = [number / 10 for number in range(1, 9)]  # more than there are colors
    figure = sensitivity.draw(
        [{"ratio": ratio, "rank": rank, **values} for ratio in ratios for rank in (0.0, None)], ""
    )
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"{ratio:.0%} removed" for ratio in ratios]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ckpt_path": "none.ckpt"}, "ckpt_path='none.ckpt'"),
        ({"thresholds": 1}, "thresholds=1"),
        ({"preset": "default"}, "preset='default'"),
        ({"ratios": (1.5,)}, "pruning_ratio=1.5"),
        ({"max_groups": (0,)}, "max_groups=0"),
    ],
)
def test_bad_settings_are_refused(sst2: dict[str, str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sensitivity.run(**sst2 | settings)
