"""Check an installed wheel: run as `python -I check_wheel.py FOLDER`, with FOLDER the installation's target."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Import each package from the wheel, not from the checkout, and look for what must and must not be there."""
    # An editable install's finder would hand out the checkout: take it away, so that only the wheel is left.
    sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
    sys.path.insert(0, str(folder))
    packages = ("callbacks", "datamodules", "modules", "export", "benchmark", "report", "peers")
    for name in ("pgb_lightning", *(f"pgb_lightning.{package}" for package in packages)):
        file = Path(importlib.import_module(name).__file__ or "")
        assert file.is_relative_to(folder), f"{name} came from {file}, not from the wheel"
    assert (folder / "pgb_lightning" / "py.typed").is_file(), "py.typed is missing: users would get no types"
    templates = folder / "pgb_lightning" / "report" / "templates"
    assert {"page.html", "page.css"} <= {path.name for path in templates.glob("*")}, "the report's page is missing"
    packages = {path.name for path in folder.iterdir() if path.suffix != ".dist-info"} - {"bin", "__pycache__"}
    assert packages == {"pgb_lightning"}, f"the wheel puts {sorted(packages)} into site-packages"
    licences = list(folder.glob("*.dist-info/licenses/LICENSE"))
    assert licences, "the licence is missing"
    print(f"The wheel is right: {', '.join(sorted(packages))}, with callbacks, datamodules, types and licence.")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
