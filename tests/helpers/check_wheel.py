"""Check an installed wheel against the checkout: run as ``python -I check_wheel.py FOLDER`` on its installation."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def source_folders() -> dict[str, Path]:
    """Return the top-level package folders of the checkout by the names they are imported as."""
    folders = [path.parent for path in ROOT.glob("*/__init__.py")]
    return {path.name if path.name == "pgb_lightning" else f"pgb_lightning.{path.name}": path for path in folders}


def source_packages() -> set[str]:
    """Return the names of all packages of the checkout: every folder with Python files."""
    return {
        ".".join((name, *file.parent.relative_to(folder).parts))
        for name, folder in source_folders().items()
        for file in folder.rglob("*.py")
    }


def list_files(folder: Path) -> set[Path]:
    """Return the files below a folder, relative to it, without caches and hidden files."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)}


def check(folder: Path) -> None:
    """Check that an installation has all packages and files of the checkout, and no others.

    Args:
        folder: The target folder of ``pip install --target``.
    """
    # Without the finder of an editable install, imports can come from the wheel only.
    sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
    sys.path.insert(0, str(folder))
    packages = source_packages()
    for name in sorted(packages):
        file = Path(importlib.import_module(name).__file__ or "")
        assert file.is_relative_to(folder), f"{name} was imported from {file}, not from the wheel"
    expected = {
        Path(*name.split("."), path) for name, source in source_folders().items() for path in list_files(source)
    }
    installed = {Path("pgb_lightning", path) for path in list_files(folder / "pgb_lightning")}
    missing, unexpected = sorted(map(str, expected - installed)), sorted(map(str, installed - expected))
    assert not missing, f"missing in the wheel: {', '.join(missing)}"
    assert not unexpected, f"in the wheel but not in the checkout: {', '.join(unexpected)}"
    top_level = {path.name for path in folder.iterdir() if path.suffix != ".dist-info"} - {"bin", "__pycache__"}
    assert top_level == {"pgb_lightning"}, f"the wheel adds {sorted(top_level)} to site-packages"
    assert list(folder.glob("*.dist-info/licenses/LICENSE")), "the license is missing"
    configs = sum(path.suffix == ".yaml" for path in installed)
    print(f"The wheel is complete: {len(packages)} packages, {len(installed)} files, {configs} of them configurations.")


if __name__ == "__main__":
    check(Path(sys.argv[1]).resolve())
