"""The soak: it runs, it repeats itself, and it sees faults."""

from __future__ import annotations

import pytest
import soak
import torch
from helpers.soak import fit
from helpers.soak.refusals import is_refusal
from helpers.soak.settings import draw

from pgb_lightning import PruningConfig


def test_the_same_seed_draws_the_same_settings() -> None:
    assert [draw(3, number) for number in range(20)] == [draw(3, number) for number in range(20)]
    assert draw(3, 0) != draw(4, 0)
    assert len({str(draw(3, number)) for number in range(20)}) == 20


def test_only_deliberate_errors_are_refusals() -> None:
    def refused(make: object) -> bool:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            make()  # type: ignore[operator]
        return is_refusal(caught.value)

    assert refused(lambda: PruningConfig(pruning_ratio=2))
    assert not refused(lambda: int("x"))
    assert not refused(lambda: torch.zeros(2) @ torch.zeros(3))


@pytest.mark.slow
def test_a_short_soak_has_no_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--fits", "3", "--seed", "0"]) == 0
    assert "3 fits" in capsys.readouterr().out


@pytest.mark.slow
def test_a_fault_is_printed_with_its_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise fit.Fault("broken on purpose")

    monkeypatch.setattr(fit, "check_module", broken)
    monkeypatch.setattr(fit, "is_refusal", lambda error: False)
    assert soak.main(["--seed", "0", "--only", "8"]) == 1
    out = capsys.readouterr().out
    assert "broken on purpose" in out
    assert "--seed 0 --only 8" in out
    assert "pruning_ratio" in out
