"""Pictures of images: grids of tiles, and PNG."""

import io

import numpy as np
from PIL import Image


def image_grid(images: np.ndarray, *, columns: int, gap: int = 1) -> np.ndarray:
    """Tile uint8 images (n, h, w, channels) row by row into one (H, W, channels) uint8 picture.

    Pixels are enlarged by the least factor with which the shorter side of a tile has 64 pixels or more. Tiles are `gap`
    white pixels apart and unused tiles are white. Channels are 1 or 3.
    """
    assert images.dtype == np.uint8
    assert images.shape[3] in (1, 3)
    factor = -(-64 // min(images.shape[1:3]))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    tiles = np.pad(tiles, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    n, height, width, channels = tiles.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, height, width, channels), 255, dtype=np.uint8)
    canvas[:n] = tiles
    canvas = canvas.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    picture = canvas.reshape(rows * height, columns * width, channels)
    return picture[: rows * height - gap, : columns * width - gap]


def pair_grid(real: np.ndarray, fake: np.ndarray, *, columns: int) -> np.ndarray:
    """`image_grid` of pairs, each generated image above the real one of the same index.

    The images of a pair touch; wide gaps separate the pairs.
    """
    assert real.shape == fake.shape
    return image_grid(np.concatenate([fake, real], axis=1), columns=columns, gap=6)


def png_bytes(image: np.ndarray) -> bytes:
    """Encode a uint8 picture (h, w, 1) or (h, w, 3) as PNG."""
    assert image.dtype == np.uint8
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
