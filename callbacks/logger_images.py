"""Give figures to the loggers that take images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def takes_images(logger: Logger) -> bool:
    """Tell whether a logger takes images: TensorBoard, Comet, MLflow, and any with ``log_image`` as W&B's has it."""
    return isinstance(logger, (TensorBoardLogger, CometLogger, MLFlowLogger)) or hasattr(logger, "log_image")


def log_figures(logger: Logger, figures: Mapping[str, Figure], step: int) -> None:
    """Give a logger figures as images; if it refuses one, warn and leave it alone, for the fit matters more.

    A service may be away, and a logger of the user's own may mean something else by ``log_image``.

    Args:
        logger: The logger.
        figures: The figures by what the images are called.
        step: The step at which they are shown.
    """
    try:
        for name, figure in figures.items():
            log_figure(logger, name, figure, step)
    except Exception as error:  # whatever a service raises
        rank_zero_warn(f"PGBReport: {type(logger).__name__} did not take the figures: {type(error).__name__}: {error}")


def log_figure(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Give a logger a figure as an image; others than :func:`takes_images` tells are left alone.

    Args:
        logger: The logger.
        name: What the image is called, such as ``"pgb/groups"``.
        figure: The figure.
        step: The step at which it is shown.
    """
    pixels = to_pixels(figure)
    client: Any  # each service's own
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
    """Draw a figure into an array of bytes, (height, width, red green blue)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
