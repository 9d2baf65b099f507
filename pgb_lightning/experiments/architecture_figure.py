"""Draw the packages and top-level modules of ``pgb_lightning`` and the imports between them, as in the source code.

Below, *package* also means a top-level module. Each package is drawn above all packages that it imports. An arrow that
follows from other arrows is left out.

Example:
    ::

        python -m pgb_lightning.experiments.architecture_figure docs/img/architecture.svg
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import auto_cli

import pgb_lightning
import pgb_lightning.callbacks
import pgb_lightning.datamodules
from pgb_lightning.experiments.layered_layout import Layout
from pgb_lightning.plotting import HUES, NEUTRAL, require_matplotlib, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP = "pgb_lightning"

#: For each package, the packages that it imports.
Imports = dict[str, set[str]]

KINDS = {
    "method": [
        "config",
        "encoders",
        "calibration",
        "prediction",
        "grouping",
        "search",
        "compensation",
        "layers",
        "surgery",
        "plan",
        "pruning",
        "shapes",
        "target_warning",
        "pgb_lightning",
    ],
    "Lightning": ["callbacks", "datamodules", "modules"],
    "commands and outputs": ["cli", "export", "report", "benchmark", "experiments"],
}
"""The colors of the figure; every other package is a helper."""

WIDTH, HEIGHT = 1.0, 0.44
"""Width and height of a box, in inches."""

ROW = 0.86
"""Distance between rows, in inches."""


def source_files() -> dict[str, Path]:
    """Return the file of every module of the package, by module name."""
    files: dict[str, Path] = {}
    # In a checkout, callbacks/ and datamodules/ do not lie within the folder of pgb_lightning.
    for package in (pgb_lightning, pgb_lightning.callbacks, pgb_lightning.datamodules):
        [folder] = map(Path, package.__path__)
        for file in sorted(folder.rglob("*.py")):
            parts = [*package.__name__.split("."), *file.relative_to(folder).with_suffix("").parts]
            files[".".join(parts).removesuffix(".__init__")] = file
    return files


def imported_modules(file: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a file imports anywhere, including in functions and for type checking."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == TOP:
                while name not in modules:  # a name inside a module
                    name = name.rpartition(".")[0]
                yield name


def package_of(module: str) -> str:
    """Return the package of a module.

    Example:
        >>> package_of("pgb_lightning.search.knapsack"), package_of("pgb_lightning.plan"), package_of("pgb_lightning")
        ('search', 'plan', 'pgb_lightning')
    """
    return module.split(".")[min(module.count("."), 1)]


def package_imports() -> Imports:
    """Return, for each package, the other packages that it imports."""
    modules = source_files()
    imports: Imports = {package_of(module): set() for module in modules}
    for module, file in modules.items():
        imports[package_of(module)] |= {package_of(name) for name in imported_modules(file, modules)} - {
            package_of(module)
        }
    return imports


def reachable(imports: Imports, package: str) -> set[str]:
    """Return the packages that a package imports, directly or through others."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        new = imports[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def reduced(imports: Imports) -> Imports:
    """Return the imports without those that follow from others.

    Example:
        >>> reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()})
        {'a': {'b'}, 'b': {'c'}, 'c': set()}
    """
    return {
        package: {target for target in targets if not any(target in reachable(imports, other) for other in targets)}
        for package, targets in imports.items()
    }


def depths(imports: Imports) -> dict[str, int]:
    """Return for each package the length of its longest chain of imports.

    Raises:
        ValueError: If there are circular imports between packages.

    Example:
        >>> depths({"a": {"b", "c"}, "b": {"c"}, "c": set()})
        {'a': 2, 'b': 1, 'c': 0}
    """
    if circular := sorted(package for package in imports if package in reachable(imports, package)):
        raise ValueError(f"Circular imports: {', '.join(circular)}.")
    found: dict[str, int] = {}

    def depth(package: str) -> int:
        if package not in found:
            found[package] = max((depth(target) + 1 for target in imports[package]), default=0)
        return found[package]

    return {package: depth(package) for package in imports}


def levels(imports: Imports) -> dict[str, int]:
    """Return the row of each package, from the bottom: the highest row below all packages that import it."""
    found: dict[str, int] = {}
    lowest = depths(imports)
    for package in sorted(imports, key=lambda package: (-lowest[package], package)):
        above = [found[other] for other in imports if package in imports[other]]
        found[package] = min(above) - 1 if above else lowest[package]
    return found


def draw(imports: Imports) -> Figure:
    """Draw the packages and their imports."""
    require_matplotlib()
    from matplotlib.figure import Figure

    arrows = reduced(imports)
    rows = levels(imports)
    layout = Layout(arrows, rows)
    width, height = max(layout.x.values()) + 1.3, ROW * (max(rows.values()) + 1)
    figure = Figure(figsize=(width, height + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.65, width - 0.65), ylim=(-0.4, height))
    axes.axis("off")
    heights = {name: ROW * row for row, names in enumerate(layout.rows) for name in names}
    for ends, path in sorted(layout.paths.items()):
        _draw_arrow(axes, [(layout.x[name], heights[name]) for name in path], "-".join(ends))
    for package in sorted(imports):
        _draw_package(axes, package, layout.x[package], heights[package])
    _draw_legend(axes, height)
    return figure


def _draw_arrow(axes: Axes, points: list[tuple[float, float]], name: str) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    (x, y), *_ = points
    vertices, codes = [(x, y - HEIGHT / 2)], [Curve.MOVETO]
    for x, y in points[1:]:
        # Curves run between rows; within a row an arrow is vertical, so that it does not touch adjacent boxes.
        before_x, before_y = vertices[-1]
        top, bottom = y + HEIGHT / 2, y - HEIGHT / 2
        middle = (before_y + top) / 2
        vertices += [(before_x, middle), (x, middle), (x, top), (x, bottom)]
        codes += [Curve.CURVE4, Curve.CURVE4, Curve.CURVE4, Curve.LINETO]
    vertices, codes = vertices[:-1], codes[:-1]
    arrow = FancyArrowPatch(
        path=Curve(vertices, codes), arrowstyle="-|>", mutation_scale=7, linewidth=0.8, color="#8A8A8A"
    )
    arrow.set_gid(f"import-{name}")
    axes.add_patch(arrow)


def _draw_package(axes: Axes, package: str, x: float, y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="white",
            edgecolor=_color(package),
            linewidth=1.6,
        )
    )
    axes.text(x, y, package, ha="center", va="center", fontsize=8.5, color="#222222")


def _draw_legend(axes: Axes, height: float) -> None:
    for place, (kind, color) in enumerate([*zip(KINDS, HUES, strict=False), ("helpers", NEUTRAL)]):
        axes.text(-0.6, height - 0.25 - 0.2 * place, f"■ {kind}", color=color, fontsize=8.5, va="center")


def _color(package: str) -> str:
    return next((hue for hue, packages in zip(HUES, KINDS.values(), strict=False) if package in packages), NEUTRAL)


def run(path: Path) -> None:
    """Write the figure.

    Args:
        path: The file to write, such as ``docs/img/architecture.svg``.
    """
    save(draw(package_imports()), path)


if __name__ == "__main__":
    auto_cli(run)
