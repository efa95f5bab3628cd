"""Picture grids with labelled columns: sample panels, `generate` and `evaluate` draw through here."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 3
_HEADER = 22
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def draw_grid(columns: Mapping[str, Sequence[np.ndarray]], cell: int = 128) -> Image.Image:
    """Draw one row per item and one column per entry, with the entries' names above.

    Args:
        columns: name → pictures, uint8 (S, S, 3), the same number in each.
        cell: side of a drawn cell in pixels; smaller and larger pictures are resized to it.

    Returns:
        RGB picture.
    """
    rows = len(next(iter(columns.values())))
    step = cell + _GAP
    sheet = Image.new("RGB", (len(columns) * step + _GAP, rows * step + _GAP + _HEADER), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for column, (name, pictures) in enumerate(columns.items()):
        x = _GAP + column * step
        draw.text((x + cell / 2, _HEADER / 2 + 1), name, fill=_INK, font=font, anchor="mm")
        for row, picture in enumerate(pictures):
            tile = Image.fromarray(picture)
            if tile.size != (cell, cell):
                tile = tile.resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x, _HEADER + _GAP + row * step))
    return sheet
