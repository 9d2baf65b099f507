"""Figures are logged with the arguments of each logger that accepts images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pgb_lightning.callbacks.logger_images import accepts_images, log_figure, log_figures, to_pixels


class Recorder:
    """Record the calls of a service's client."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []


class CometClient(Recorder):
    def log_image(self, image_data: Any, name: str | None = None, overwrite: bool = False, step: int = 0) -> None:
        self.calls.append((image_data, name, step))


class MLFlowClient(Recorder):
    def log_image(self, run_id: str, image: Any, artifact_file: str | None = None) -> None:
        self.calls.append((image, run_id, artifact_file))


class WithLogImage(CSVLogger):
    """A logger with W&B's method."""

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.logged = (images, key, step)


@pytest.fixture
def figure() -> Figure:
    made = Figure(figsize=(2, 1), dpi=50, facecolor="#ff0000")
    made.subplots().plot([1, 2])
    return made


def check(pixels: NDArray[Any]) -> None:
    assert pixels.shape == (50, 100, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_a_figure_is_rendered_to_pixels(figure: Figure) -> None:
    check(to_pixels(figure))


def test_tensorboard_stores_the_image(figure: Figure, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(str(tmp_path))
    log_figure(logger, "pgb/groups", figure, step=3)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    [image] = events.Images("pgb/groups")
    assert (image.step, image.width, image.height) == (3, 100, 50)


def test_a_logger_with_log_image_gets_a_list(figure: Figure, tmp_path: Path) -> None:
    logger = WithLogImage(str(tmp_path))
    log_figure(logger, "pgb/groups", figure, step=3)
    [pixels], key, step = logger.logged
    check(pixels)
    assert (key, step) == ("pgb/groups", 3)


def test_comet_and_mlflow_use_their_clients(figure: Figure) -> None:
    class Comet(CometLogger):
        client = CometClient()
        experiment = client

        def __init__(self) -> None:
            """Need no account."""

    class MLFlow(MLFlowLogger):
        client = MLFlowClient()
        experiment = client
        run_id = "run"

        def __init__(self) -> None:
            """Need no server."""

    log_figure(Comet(), "pgb/kept", figure, step=2)
    log_figure(MLFlow(), "pgb/kept", figure, step=2)
    [(pixels, *rest)] = Comet.client.calls
    check(pixels)
    assert rest == ["pgb/kept", 2]
    [(pixels, *rest)] = MLFlow.client.calls
    check(pixels)
    assert rest == ["run", "pgb/kept.png"]


def test_other_loggers_get_nothing(figure: Figure, tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    assert not accepts_images(logger)
    log_figure(logger, "pgb/groups", figure, step=0)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_a_warning(figure: Figure, tmp_path: Path) -> None:
    class Unavailable(WithLogImage):
        tried = 0

        def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
            self.tried += 1
            raise ConnectionError("the service is unavailable")

    logger = Unavailable(str(tmp_path))
    with pytest.warns(UserWarning, match=r"Unavailable.*ConnectionError"):
        log_figures(logger, {"pgb/groups": figure, "pgb/kept": figure}, step=0)
    assert logger.tried == 1


def test_a_different_log_image_method_is_a_warning(figure: Figure, tmp_path: Path) -> None:
    class Other(CSVLogger):
        def log_image(self, path: str) -> None:
            raise AssertionError

    with pytest.warns(UserWarning, match=r"Other.*TypeError"):
        log_figures(Other(str(tmp_path)), {"pgb/groups": figure}, step=0)
