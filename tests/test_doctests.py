"""The examples in the docstrings of every module do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import pgb_lightning
import pgb_lightning.callbacks
import pgb_lightning.datamodules

# Under an editable install the folders of the last two do not lie within the first's: look into each. Imported
# by name, and not collected by path, so that the modules are those that users import.
PACKAGES = (pgb_lightning, pgb_lightning.callbacks, pgb_lightning.datamodules)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {info.name for package in PACKAGES for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
)
FOLDERS = {package.__name__.removeprefix("pgb_lightning."): package.__name__ for package in PACKAGES}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0, f"{failed} examples of {name} fail: see the captured output."


def test_no_module_is_missed() -> None:
    root = Path(__file__).parents[1]
    files = {
        ".".join((package, *path.relative_to(root / folder).with_suffix("").parts)).removesuffix(".__init__")
        for folder, package in FOLDERS.items()
        for path in (root / folder).rglob("*.py")
    }
    assert files == set(MODULES)
