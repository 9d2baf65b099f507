"""The settings are documented once, in PruningConfig, and shown everywhere."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields

import pytest
from helpers.settings_table import PAGE, update_page

from pgb_lightning import PruningConfig
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.callbacks.pruning.settings import PLACEHOLDER, setting_descriptions
from pgb_lightning.cli.main import run

NAMES = [field.name for field in fields(PruningConfig)]


def test_every_setting_has_a_description_and_is_an_argument_of_the_callback() -> None:
    assert list(setting_descriptions()) == NAMES
    assert set(NAMES) <= inspect.signature(PGBCallback).parameters.keys()


def test_the_callback_has_the_same_descriptions() -> None:
    assert PLACEHOLDER not in PGBCallback.__doc__
    text = " ".join(PGBCallback.__doc__.split())
    for name, description in setting_descriptions().items():
        assert f"{name}: {description}" in text


def test_the_command_line_explains_every_argument(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sys, "argv", ["pgb"])
    with pytest.raises(SystemExit):
        run(["fit", "--trainer.callbacks.help=PGBCallback"])
    text = " ".join(capsys.readouterr().out.split())
    for name in inspect.signature(PGBCallback).parameters:
        assert f"--trainer.callbacks.{name} " in text or f".init_args.{name} " in text
    for description in setting_descriptions().values():
        assert description[:80] in text


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == update_page(page), "run: python tests/helpers/settings_table.py"
