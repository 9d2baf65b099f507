"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import pgb_lightning
import pgb_lightning.callbacks
import pgb_lightning.datamodules

MODULES = sorted(
    {
        module.name
        for package in (pgb_lightning, pgb_lightning.callbacks, pgb_lightning.datamodules)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
)


def test_all_modules_are_found() -> None:
    assert {"pgb_lightning.linear", "pgb_lightning.callbacks.pgb", "pgb_lightning.datamodules.glue"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    # SKIP is for examples that would need the Hub.
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failures == 0
