"""A permuted matrix as a picture: its importance in grey, and in a hue of its own where a block lies."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

from pgb_lightning.plan import MatrixPlan
from pgb_lightning.plotting import HUES
from pgb_lightning.report.maps import LEVELS, Map, blocks_of

GREY = "#808080"

#: Red, green, blue and opacity, 0 to 255.
Colour = tuple[int, int, int, int]


def palette() -> list[Colour]:
    """List the colours of a picture: 16 shades of grey, then of each hue.

    Shades are opacities, so that the picture does on a light and on a dark page. Within a block even importance 0 is
    seen, or nobody could tell it from a pruned weight.
    """
    colours = [(*_channels(GREY), round(170 * level / (LEVELS - 1))) for level in range(LEVELS)]
    for hue in HUES:
        colours += [(*_channels(hue), round(50 + 205 * level / (LEVELS - 1))) for level in range(LEVELS)]
    return colours


def cells_of(matrix: MatrixPlan, shades: Map) -> list[bytes]:
    """Colour a map: one place in the palette a cell.

    Args:
        matrix: Whose blocks are coloured; with more than six, hues come again.
        shades: Its importance, as :func:`pgb_lightning.report.maps.importance_map` makes it.
    """
    blocks = blocks_of(matrix)
    height, width = len(shades), len(shades[0])
    coloured = []
    for row, digits in enumerate(shades):
        line = bytearray(int(digit, LEVELS) for digit in digits)
        for number, block in enumerate(blocks):
            start = LEVELS * (1 + number % len(HUES))
            for column in range(width):
                if block.holds((row + 0.5) / height, (column + 0.5) / width):
                    line[column] += start
        coloured.append(bytes(line))
    return coloured


def data_url(matrix: MatrixPlan, shades: Map) -> str:
    """Return the picture as a PNG within an address, for a page that stands alone."""
    return "data:image/png;base64," + b64encode(png(cells_of(matrix, shades), palette())).decode()


def png(rows: list[bytes], colours: list[Colour]) -> bytes:
    """Write a picture of few colours as a PNG file (its third edition's colour type 3).

    Args:
        rows: One place in ``colours`` a pixel.
        colours: At most 256.
    """
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    chunks = {
        b"IHDR": header,
        b"PLTE": bytes(channel for colour in colours for channel in colour[:3]),
        b"tRNS": bytes(colour[3] for colour in colours),
        b"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows), 9),  # 0: no filter
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks.items())


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _channels(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue
