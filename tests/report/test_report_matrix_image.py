"""Pictures: readable PNG files whose colours are those of the blocks."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib import image

from pgb_lightning.plan import PruningPlan
from pgb_lightning.plotting import HUES
from pgb_lightning.report import Facts
from pgb_lightning.report.maps import LEVELS, blocks_of
from pgb_lightning.report.matrix_image import cells_of, data_url, palette, png


def test_another_program_reads_what_was_written() -> None:
    colours = [(0, 0, 0, 255), (255, 0, 10, 128), (1, 2, 3, 0)]
    pixels = image.imread(io.BytesIO(png([bytes([0, 1]), bytes([2, 0]), bytes([1, 1])], colours)))
    assert pixels.shape == (3, 2, 4)
    assert (np.round(pixels * 255) == np.array(colours)[[[0, 1], [2, 0], [1, 1]]]).all()


def test_there_is_room_in_a_palette() -> None:
    assert len(palette()) == LEVELS * (1 + len(HUES)) <= 256
    assert palette()[0][3] == 0  # what is gone and did not matter is not seen


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_cells_are_coloured_where_a_block_lies(preset: str, made: Callable[..., tuple[PruningPlan, Facts]]) -> None:
    plan, facts = made(preset)
    for matrix in plan.matrices:
        shades = facts.maps[f"{matrix.layer}.{matrix.kind}"]
        cells = np.array([list(line) for line in cells_of(matrix, shades)])
        assert cells.shape == (matrix.rows, matrix.columns)  # 24 x 96 needs no shrinking
        assert (cells % LEVELS == [[int(digit, 16) for digit in row] for row in shades]).all()
        assert (cells >= LEVELS).mean() == pytest.approx(matrix.kept_share)
        for number, block in enumerate(blocks_of(matrix)):
            top, left = round(block.top * matrix.rows), round(block.left * matrix.columns)
            assert cells[top, left] // LEVELS == 1 + number
        pixels = image.imread(io.BytesIO(b64decode(data_url(matrix, shades).partition(",")[2])))
        assert pixels.shape[:2] == cells.shape
