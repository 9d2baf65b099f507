"""Colors, markers and legends of figures, and functions to save them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""One color per group: the Okabe-Ito palette, which remains distinguishable with color vision deficiencies."""

MARKERS = "osv^Dx"
"""One marker for each set of as many groups as there are colors."""

NEUTRAL = "#5A5A5A"
"""Color of labels, and of everything that belongs to no group."""

REPRODUCIBLE_SUFFIXES = (".svg", ".png", ".pdf")
"""File formats whose creation date and creator can be omitted."""


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ImportError: If it is not installed. The message contains the command that installs it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError('Figures need matplotlib. Run: pip install "pgb-lightning[figures]"') from error


def check_suffix(path: str, setting: str) -> None:
    """Check that a file has a format in which equal figures give identical files.

    Args:
        path: The file.
        setting: Name of the setting that has it, for the message.

    Raises:
        ValueError: If it is not an SVG, PNG or PDF file.
    """
    if Path(path).suffix not in REPRODUCIBLE_SUFFIXES:
        raise ValueError(
            f"{setting}={path!r} is not a figure file. Use one of the suffixes {', '.join(REPRODUCIBLE_SUFFIXES)}."
        )


def series_style(number: int) -> dict[str, Any]:
    """Return the color and the marker of a series, given its index."""
    return {"color": HUES[number % len(HUES)], "marker": MARKERS[number // len(HUES) % len(MARKERS)]}


def add_legend(figure: Figure, columns: int) -> None:
    """Add one legend below the panels of a figure, with each label once.

    Args:
        figure: The figure.
        columns: Number of columns of the legend.
    """
    shown = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in shown}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Save a figure.

    In the formats of :data:`REPRODUCIBLE_SUFFIXES`, equal figures give byte-identical files.

    Args:
        figure: The figure.
        path: The file to write. Its suffix selects the format; missing folders are created.
    """
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Creator": None} if path.suffix in REPRODUCIBLE_SUFFIXES else None  # others accept none
    with matplotlib.rc_context({"svg.hashsalt": "pgb-lightning"}):
        figure.savefig(path, dpi=200, metadata=metadata)
