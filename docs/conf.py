"""The documentation site: `make docs`. Guides are the Markdown files beside this one, the API comes from docstrings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
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
myst_heading_anchors = 3  # a link to a heading that does not exist is a warning, and so an error
default_role = "literal"  # single backticks in docstrings are code, as in Markdown
napoleon_custom_sections = ["Shape"]
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
suppress_warnings = ["ref.python"]  # two classes may have an attribute of one name

html_theme = "furo"
html_title = f"pgb-lightning {release}"
html_copy_source = False

API = Path(__file__).parent / "api"


def setup(app: Sphinx) -> None:
    """Write the API's pages before Sphinx looks for pages."""
    app.connect("config-inited", lambda *_: write_api())


def write_api() -> None:
    """Write one page for each package: its public names, then what its modules hold besides."""
    API.mkdir(exist_ok=True)
    for old in API.glob("*.rst"):
        old.unlink()
    packages = list(walk_packages())
    public = {id(value) for package in packages for value in exported(package).values()}
    for package in packages:
        (API / f"{package.__name__}.rst").write_text("\n".join(page(package, public)), encoding="utf-8")
    names = "\n".join(f"   {package.__name__}" for package in packages)
    intro = "Public names first, package by package; then the modules behind them, for those who read the source."
    toctree = f".. toctree::\n   :maxdepth: 1\n\n{names}\n"
    (API / "index.rst").write_text(f"{heading('API', '=')}\n\n{intro}\n\n{toctree}", encoding="utf-8")


def walk_packages() -> Iterator[ModuleType]:
    """Find every package; a new one gets its page without being listed anywhere."""
    # Under an editable install the folders of the last two do not lie within the first's.
    for top in (pgb_lightning, pgb_lightning.callbacks, pgb_lightning.datamodules):
        yield top
        for found in pkgutil.iter_modules(top.__path__, f"{top.__name__}."):
            if found.ispkg:
                yield importlib.import_module(found.name)


def exported(package: ModuleType) -> dict[str, object]:
    """Return the package's public names, without packages, which have pages of their own."""
    members = {name: getattr(package, name) for name in getattr(package, "__all__", ())}
    return {name: value for name, value in members.items() if not inspect.ismodule(value)}


def page(package: ModuleType, public: set[int]) -> Iterator[str]:
    """Write a package's page."""
    yield heading(package.__name__, "=")
    yield directive(package.__name__, list(exported(package)))
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.ispkg or found.name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(found.name)
        own = [
            name
            for name, value in vars(module).items()
            if (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
            and not name.startswith("_")
            and id(value) not in public
        ]
        yield heading(found.name.removeprefix(f"{package.__name__}."), "-")
        yield directive(found.name, own)


def directive(module: str, names: list[str]) -> str:
    """Return the lines that document a module and some of its names."""
    members = f"   :members: {', '.join(names)}\n   :imported-members:\n" if names else ""
    return f".. automodule:: {module}\n{members}"


def heading(text: str, line: str) -> str:
    """Underline a heading."""
    return f"{text}\n{line * len(text)}\n"
