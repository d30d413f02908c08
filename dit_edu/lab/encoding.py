"""Arrays as text a page can read: rounded numbers as lists, pictures as one PNG in a data URI."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image


def plain(values: ArrayLike, digits: int = 4) -> Any:
    """Nested lists of numbers of ``digits`` significant digits; NaN and infinity become None."""
    if isinstance(values, str):
        return values
    if isinstance(values, (Sequence, np.ndarray)):
        return [plain(v, digits) for v in values]
    value = float(values)
    if not math.isfinite(value):
        return None
    value = (
        value if abs(value) >= 10**digits and value.is_integer() else float(f"{value:.{digits}g}")
    )
    return int(value) if value.is_integer() else value


def short(value: float | str) -> str:
    """A number as a reader wants it: whole numbers in full, others to three digits."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def to_uint8(images: ArrayLike, levels: int = 256) -> np.ndarray:
    """Images in [-1, 1] as bytes, in ``levels`` even shades; values outside are clipped."""
    unit = (np.clip(np.asarray(images, dtype=np.float64), -1, 1) + 1) / 2
    return np.round(np.round(unit * (levels - 1)) * (255 / (levels - 1))).astype(np.uint8)


def sprite_sheet(images: ArrayLike, levels: int = 256) -> dict[str, Any]:
    """Pack images (n, C, H, W) in [-1, 1], C = 1 or 3, as one PNG in a data URI.

    Returns:
        ``sprite`` (the URI), ``tile`` [H, W] and ``per_row``, the number of tiles in a row.
    """
    tiles = np.moveaxis(to_uint8(images, levels), 1, -1)  # (n, H, W, C)
    n, h, w, c = tiles.shape
    per_row = math.ceil(math.sqrt(n))
    rows = math.ceil(n / per_row)
    sheet = np.zeros((rows * per_row, h, w, c), np.uint8)
    sheet[:n] = tiles
    sheet = sheet.reshape(rows, per_row, h, w, c).swapaxes(1, 2)  # (rows, H, per_row, W, C)
    sheet = sheet.reshape(rows * h, per_row * w, c)
    uri = png_uri(Image.fromarray(sheet[..., 0] if c == 1 else sheet))
    return {"sprite": uri, "tile": [h, w], "per_row": per_row}


def png_uri(picture: Image.Image) -> str:
    """A picture as a ``data:`` URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
