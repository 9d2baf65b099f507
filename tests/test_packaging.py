"""The package list of pyproject.toml matches the folders of the checkout."""

from __future__ import annotations

import pytest
from helpers.check_wheel import ROOT, source_folders, source_packages

tomllib = pytest.importorskip("tomllib", reason="tomllib needs Python 3.11")


def test_every_folder_with_python_files_is_a_package_of_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(source_packages())
    folders = {name: str(folder.relative_to(ROOT)) for name, folder in source_folders().items()}
    assert settings["package-dir"] == folders
