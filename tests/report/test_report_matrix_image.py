"""Images are valid PNG files with the colors of the blocks."""

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
from pgb_lightning.report.matrix_image import color_cells, color_table, encode_png, image_data_url


def test_matplotlib_reads_the_png() -> None:
    colors = [(0, 0, 0, 255), (255, 0, 10, 128), (1, 2, 3, 0)]
    pixels = image.imread(io.BytesIO(encode_png([bytes([0, 1]), bytes([2, 0]), bytes([1, 1])], colors)))
    assert pixels.shape == (3, 2, 4)
    assert (np.round(pixels * 255) == np.array(colors)[[[0, 1], [2, 0], [1, 1]]]).all()


def test_the_color_table_fits_in_a_byte() -> None:
    assert len(color_table()) == LEVELS * (1 + len(HUES)) <= 256
    assert color_table()[0][3] == 0  # removed weights of importance 0 are transparent


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_cells_in_a_block_are_colored(preset: str, plan_and_facts: Callable[..., tuple[PruningPlan, Facts]]) -> None:
    plan, facts = plan_and_facts(preset)
    for matrix in plan.matrices:
        shades = facts.maps[f"{matrix.layer}.{matrix.kind}"]
        cells = np.array([list(line) for line in color_cells(matrix, shades)])
        assert cells.shape == (matrix.rows, matrix.columns)  # 24 x 96 is not downsampled
        assert (cells % LEVELS == [[int(digit, 16) for digit in row] for row in shades]).all()
        assert (cells >= LEVELS).mean() == pytest.approx(matrix.kept_share)
        for number, block in enumerate(blocks_of(matrix)):
            top, left = round(block.top * matrix.rows), round(block.left * matrix.columns)
            assert cells[top, left] // LEVELS == 1 + number
        pixels = image.imread(io.BytesIO(b64decode(image_data_url(matrix, shades).partition(",")[2])))
        assert pixels.shape[:2] == cells.shape
