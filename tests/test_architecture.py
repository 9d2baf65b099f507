"""Imports between the packages and top-level modules point in one direction, and the figure in the docs shows them."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.guides import ROOT, anchors

from pgb_lightning.experiments import architecture_figure
from pgb_lightning.experiments.architecture_figure import levels, package_imports, package_of, reduced, source_files
from pgb_lightning.experiments.layered_layout import Layout

FIGURE = ROOT / "docs" / "img" / "architecture.svg"

#: The packages and top-level modules, from the bottom up. Each may import those of earlier rows only.
LAYERS = (
    ("_compat",),
    (
        "atomic_write",
        "batch_labels",
        "checkpoints",
        "glue_tasks",
        "label_kind",
        "layers",
        "modes",
        "packaged",
        "peak_memory",
        "plotting",
        "shapes",
    ),
    ("config", "encoders", "heads", "process_group"),
    ("model_calls", "runtimes"),
    ("calibration", "cost", "distillation", "latency", "plan", "target_warning"),
    ("surgery",),
    ("compensation",),
    ("prediction",),
    ("grouping",),
    ("search",),
    ("pruning",),
    ("datamodules", "modules"),
    ("export", "report"),
    ("benchmark", "callbacks"),
    ("pgb_lightning", "cli"),
    ("experiments",),
)

#: The method. It does not depend on Lightning.
METHOD = {
    "calibration",
    "compensation",
    "config",
    "encoders",
    "grouping",
    "label_kind",
    "layers",
    "model_calls",
    "plan",
    "prediction",
    "pruning",
    "runtimes",
    "search",
    "shapes",
    "surgery",
    "target_warning",
}

FILES = source_files()


def row_of(package: str) -> int:
    rows = [row for row, packages in enumerate(LAYERS) if package in packages]
    assert rows, f"{package!r} is new: add it to LAYERS"
    return rows[0]


def test_imports_point_to_lower_layers() -> None:
    wrong = [
        f"{package} imports {target}"
        for package, targets in package_imports().items()
        for target in targets
        if row_of(target) >= row_of(package)
    ]
    assert wrong == []


def test_only_experiments_import_experiments() -> None:
    assert [package for package, targets in package_imports().items() if "experiments" in targets] == []


def test_private_api_of_other_packages_is_used_at_the_bottom() -> None:
    assert package_imports().get("_compat", set()) == set()


@pytest.mark.parametrize("module", [name for name in FILES if package_of(name) in METHOD])
def test_the_method_does_not_import_lightning(module: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert not imported & {"lightning", "pytorch_lightning", "lightning_fabric"}


def test_the_page_describes_every_package() -> None:
    page = ROOT / "docs" / "architecture.md"
    described = anchors(page) | set(re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(package_imports()) - described == set()


def test_the_figure_shows_the_imports() -> None:
    """The file is the figure of today's imports: `python -m pgb_lightning.experiments.architecture_figure`."""
    shown = set(re.findall(r'id="import-(\w+)-(\w+)"', FIGURE.read_text(encoding="utf-8")))
    assert shown == {(package, target) for package, targets in reduced(package_imports()).items() for target in targets}


def test_the_figure_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for file in files:
        architecture_figure.run(file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_packages_are_drawn_above_what_they_import_and_do_not_overlap() -> None:
    imports = package_imports()
    rows = levels(imports)
    assert all(rows[package] > rows[target] for package, targets in imports.items() for target in targets)
    layout = Layout(reduced(imports), rows)
    for row in layout.rows:
        places = [layout.x[package] for package in row if package in imports]
        assert all(right - left > architecture_figure.WIDTH for left, right in pairwise(places))
    assert layout.crossings() < 80


def test_circular_imports_are_refused() -> None:
    with pytest.raises(ValueError, match="a, b"):
        architecture_figure.depths({"a": {"b"}, "b": {"a"}, "c": set()})
