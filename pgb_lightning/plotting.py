"""The palette of all figures, and saving them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""One for each group; Okabe and Ito's, which people tell apart whatever their colour vision."""


NEUTRAL = "#5A5A5A"


ENDINGS = (".svg", ".png", ".pdf")
"""Formats of figures whose date and maker can be left out."""


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib.

    Raises:
        ImportError: It is not installed; the message has the command that does it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "pgb-lightning[figures]".') from error


def save(figure: Figure, path: Path) -> None:
    """Save a figure; the same figure becomes the same file, to the byte, in the formats of :data:`ENDINGS`.

    Args:
        figure: The figure.
        path: The file, whose ending says the format; folders are made.
    """
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "pgb-lightning"}):
        # Other formats refuse metadata.
        figure.savefig(path, dpi=200, metadata={"Date": None, "Creator": None} if path.suffix in ENDINGS else None)
