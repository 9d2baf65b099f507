"""PNG images of a matrix in block order: importance in gray, each block in its own hue."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

from pgb_lightning.plan import MatrixPlan
from pgb_lightning.plotting import HUES
from pgb_lightning.report.maps import LEVELS, ImportanceMap, blocks_of

GRAY = "#808080"

#: Red, green, blue and opacity, 0 to 255.
Color = tuple[int, int, int, int]


def color_table() -> list[Color]:
    """Return the colors of an image: 16 shades of gray, then 16 of each hue.

    Shades are opacities, so that the image works on light and dark pages. In a block, importance 0 is visible, to
    distinguish it from pruned weights.
    """
    colors = [(*_channels(GRAY), round(170 * level / (LEVELS - 1))) for level in range(LEVELS)]
    for hue in HUES:
        colors += [(*_channels(hue), round(50 + 205 * level / (LEVELS - 1))) for level in range(LEVELS)]
    return colors


def color_cells(matrix: MatrixPlan, shades: ImportanceMap) -> list[bytes]:
    """Return the index in :func:`color_table` of each cell of a map.

    Args:
        matrix: The plan of the matrix. With more blocks than hues, hues repeat.
        shades: The result of :func:`pgb_lightning.report.maps.importance_map`.
    """
    blocks = blocks_of(matrix)
    height, width = len(shades), len(shades[0])
    colored = []
    for row, digits in enumerate(shades):
        line = bytearray(int(digit, LEVELS) for digit in digits)
        for number, block in enumerate(blocks):
            start = LEVELS * (1 + number % len(HUES))
            for column in range(width):
                if block.contains((row + 0.5) / height, (column + 0.5) / width):
                    line[column] += start
        colored.append(bytes(line))
    return colored


def image_data_url(matrix: MatrixPlan, shades: ImportanceMap) -> str:
    """Return the image as a PNG in a ``data:`` URL, for a self-contained page."""
    return "data:image/png;base64," + b64encode(encode_png(color_cells(matrix, shades), color_table())).decode()


def encode_png(rows: list[bytes], colors: list[Color]) -> bytes:
    """Encode an indexed-color image (color type 3 of the PNG specification, third edition).

    Args:
        rows: The rows of pixels; one byte per pixel, an index in ``colors``.
        colors: At most 256 colors.

    Returns:
        The content of the PNG file.
    """
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    chunks = {
        b"IHDR": header,
        b"PLTE": bytes(channel for color in colors for channel in color[:3]),
        b"tRNS": bytes(color[3] for color in colors),
        b"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows), 9),  # filter type 0: none
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks.items())


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _channels(color: str) -> tuple[int, int, int]:
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue
