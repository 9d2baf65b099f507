"""Log figures to the loggers that accept images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def accepts_images(logger: Logger) -> bool:
    """Return whether a logger accepts images: TensorBoard, Comet, MLflow, or any with W&B's ``log_image``."""
    return isinstance(logger, (TensorBoardLogger, CometLogger, MLFlowLogger)) or hasattr(logger, "log_image")


def log_figures(logger: Logger, figures: Mapping[str, Figure], step: int) -> None:
    """Log figures as images. A failure is reported as a warning, so that it does not end the fit.

    A service may be unavailable, or a user's logger may have an unrelated method called ``log_image``.

    Args:
        logger: The logger.
        figures: The figures, by the names of the images.
        step: The step to log them at.
    """
    try:
        for name, figure in figures.items():
            log_figure(logger, name, figure, step)
    except Exception as error:  # Services raise any kind of exception.
        rank_zero_warn(f"PGBReport: {type(logger).__name__} did not log the figures: {type(error).__name__}: {error}")


def log_figure(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Log a figure as an image. Does nothing for a logger for which :func:`accepts_images` is false.

    Args:
        logger: The logger.
        name: Name of the image, such as ``"pgb/groups"``.
        figure: The figure.
        step: The step to log it at.
    """
    pixels = to_pixels(figure)
    client: Any  # a different type for each service
    if isinstance(logger, TensorBoardLogger):
        client = logger.experiment
        client.add_image(name, pixels, step, dataformats="HWC")
    elif isinstance(logger, CometLogger):
        client = logger.experiment
        client.log_image(pixels, name=name, step=step)
    elif isinstance(logger, MLFlowLogger):
        client = logger.experiment
        client.log_image(logger.run_id, pixels, artifact_file=f"{name}.png")
    elif hasattr(logger, "log_image"):
        logger.log_image(key=name, images=[pixels], step=step)


def to_pixels(figure: Figure) -> NDArray[Any]:
    """Render a figure to an array of RGB bytes, (height, width, 3)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
