"""The documentation site (``make docs``): guides from the Markdown files in this folder, the API from docstrings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx

import pgb_lightning
import pgb_lightning.callbacks
import pgb_lightning.datamodules

project = "pgb-lightning"
author = "The pgb-lightning authors"
release = version = pgb_lightning.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**/_*"]
myst_heading_anchors = 3  # a link to a missing heading is a warning, and with -W an error
default_role = "literal"  # single backticks in docstrings are code
napoleon_custom_sections = ["Shape"]
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
suppress_warnings = ["ref.python"]  # two classes may have attributes of the same name

html_theme = "furo"
html_title = f"pgb-lightning {release}"
html_copy_source = False

API = Path(__file__).parent / "api"


def setup(app: Sphinx) -> None:
    """Write the API's pages before Sphinx looks for pages."""
    app.connect("config-inited", lambda *_: write_api())


def write_api() -> None:
    """Write one page for each package: its public names, then the other names of its modules."""
    API.mkdir(exist_ok=True)
    for old in API.glob("*.rst"):
        old.unlink()
    packages = list(walk_packages())
    homes: dict[int, str] = {}  # an object that several packages export is documented by the first one
    for package in packages:
        for value in exported(package).values():
            homes.setdefault(id(value), package.__name__)
    for package in packages:
        (API / f"{package.__name__}.rst").write_text("\n".join(page(package, homes)), encoding="utf-8")
    names = "\n".join(f"   {package.__name__}" for package in packages)
    intro = "The public names of each package come first, then its modules."
    toctree = f".. toctree::\n   :maxdepth: 1\n\n{names}\n"
    (API / "index.rst").write_text(f"{heading('API', '=')}\n\n{intro}\n\n{toctree}", encoding="utf-8")


def walk_packages() -> Iterator[ModuleType]:
    """Yield every package, so that a new one gets its page without being listed."""
    # In an editable install, the folders of the last two are not inside that of the first.
    for top in (pgb_lightning, pgb_lightning.callbacks, pgb_lightning.datamodules):
        yield top
        for found in pkgutil.walk_packages(top.__path__, f"{top.__name__}."):
            if found.ispkg:
                yield importlib.import_module(found.name)


def exported(package: ModuleType) -> dict[str, object]:
    """Return the public names of a package, without packages, which have their own pages."""
    members = {name: getattr(package, name) for name in getattr(package, "__all__", ())}
    return {name: value for name, value in members.items() if not inspect.ismodule(value)}


def page(package: ModuleType, homes: Mapping[int, str]) -> Iterator[str]:
    """Yield the lines of a package's page."""
    yield heading(package.__name__, "=")
    public = exported(package)
    yield directive(package.__name__, [name for name, value in public.items() if homes[id(value)] == package.__name__])
    elsewhere = [f":obj:`{homes[id(v)]}.{name}`" for name, v in public.items() if homes[id(v)] != package.__name__]
    if elsewhere:
        yield f"Also exported here: {', '.join(elsewhere)}.\n"
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        name = found.name.rpartition(".")[2]
        if found.ispkg or name.startswith("_"):
            continue
        module = importlib.import_module(found.name)
        own = [
            name
            for name, value in vars(module).items()
            if (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
            and not name.startswith("_")
            and id(value) not in homes
        ]
        yield heading(name, "-")
        # A function may have the name of its module, as pgb_lightning.surgery.dense_twin: only one can be indexed.
        yield directive(found.name, own, index=name not in public)


def directive(module: str, names: list[str], index: bool = True) -> str:
    """Return the lines that document a module and some of its names."""
    options = "" if index else "   :no-index:\n"
    if names:
        options += f"   :members: {', '.join(names)}\n   :imported-members:\n"
    return f".. automodule:: {module}\n{options}"


def heading(text: str, line: str) -> str:
    """Underline a heading."""
    return f"{text}\n{line * len(text)}\n"
