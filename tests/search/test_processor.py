"""The processor's name, which identifies cached latency tables."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgb_lightning.search import processor
from pgb_lightning.search.processor import processor_name


@pytest.fixture(autouse=True)
def no_cache() -> Iterator[None]:
    processor_name.cache_clear()
    yield
    processor_name.cache_clear()


def test_linux_reads_the_model_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: Fake CPU @ 2.00GHz\nmodel name\t: another\n")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    assert processor_name() == "Fake CPU @ 2.00GHz"


def test_macos_asks_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "Fake M9\n"))
    assert processor_name() == "Fake M9"


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_it_falls_back_to_the_machine_s_type(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(subprocess, "run", fail)
    assert processor_name() == (platform.processor() or platform.machine())
