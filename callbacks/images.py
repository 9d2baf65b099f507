"""Give figures to the loggers that take images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def takes_images(logger: Logger) -> bool:
    """Tell whether a logger takes images: TensorBoard, Comet, MLflow, and any with ``log_image`` as W&B's has it."""
    return isinstance(logger, (TensorBoardLogger, CometLogger, MLFlowLogger)) or hasattr(logger, "log_image")


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
