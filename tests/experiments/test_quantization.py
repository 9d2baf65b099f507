"""What quantization costs, measured on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.experiments.quantization import run
from pgb_lightning.runtimes import requirements

needs_openvino = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openvino", "nncf", "onnxruntime", "onnxscript")),
    reason="the extra openvino is not installed",
)


@needs_openvino
@pytest.mark.usefixtures("restored_threads")
def test_every_kind_is_compared_with_single_precision(sst2: dict[str, str], tmp_path: Path) -> None:
    found = run(
        "sst2",
        sst2["ckpt_path"],
        data_dir=sst2["data_dir"],
        ratios=(0.5,),
        calibration_rows=20,
        out=str(tmp_path / "found.json"),
    )
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert set(found) == {"dense", "50% removed"}
    for kinds in found.values():
        assert set(kinds) == {"fp32", "int8", "int8-static", "openvino int8"}
        assert kinds["fp32"]["largest"] == 0
        for kind in ("int8", "int8-static", "openvino int8"):
            assert 0 < kinds[kind]["rms"] <= kinds[kind]["largest"] < 1
            assert 0 <= kinds[kind]["score"] <= 100


@needs_openvino
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"calibration_rows": 0}, "calibration_rows=0"), ({"ratios": (1.5,)}, "pruning_ratio=1.5")],
)
def test_invalid_settings_are_refused(
    settings: dict[str, Any], message: str, pruned_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        run("sst2", str(pruned_checkpoint()), **settings)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(MisconfigurationException, match=r"pgb-lightning\[(onnx|openvino)\]"):
        run("sst2", "no.ckpt")
