"""What a label costs beside the encoding of an image: `python benchmarks/labels.py`.

The same images encoded with nothing said of their origin, with the XMP packet of the IPTC, and with
the label of GB 45438-2025 in it, in turn. The ratio is of the times with and without, the median
over the rounds, with the smallest and largest. The program without labels is ours with the label
taken out of it.
"""

import argparse
import io
import statistics
import struct
import time
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genai_ray.image.encoding import Stamp, encode_jpeg, encode_png, encode_webp

STAMP = Stamp("001191110102MAD55U9H0F10002", "0123456789abcdef-", 0)
SHAPES = ((28, 1), (32, 3), (64, 3))


def pictures(n: int, size: int, channels: int) -> NDArray[np.uint8]:
    """Smooth shapes with a little noise, (N, H, W, C): about as hard to encode as photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (n, 5, 5, channels)).astype(np.float32)
    at = np.linspace(0, 4 - 1e-3, size)
    low, part = at.astype(int), (at % 1).astype(np.float32)
    rows = coarse[:, low] * (1 - part)[:, None, None] + coarse[:, low + 1] * part[:, None, None]
    image = rows[:, :, low] * (1 - part)[:, None] + rows[:, :, low + 1] * part[:, None]
    return np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def plain_png(images: NDArray[np.uint8]) -> list[bytes]:
    """`encode_png` without its label."""
    n, height, width, channels = images.shape
    rows = images.reshape(n, height, width * channels)
    filtered = np.empty((n, height, 1 + width * channels), np.uint8)
    filtered[:, :, 0] = 2
    filtered[:, 0, 1:] = rows[:, 0]
    np.subtract(rows[:, 1:], rows[:, :-1], out=filtered[:, 1:, 1:])
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    compress, crc32, join = zlib.compress, zlib.crc32, b"".join
    tag_crc = crc32(b"IDAT")
    pngs = []
    pixels, step = filtered.data.cast("B"), filtered[0].size
    for at in range(0, n * step, step):
        body = compress(pixels[at : at + step], 1)
        crc = crc32(body, tag_crc)
        size = len(body).to_bytes(4, "big")
        pngs.append(join((start, size, b"IDAT", body, crc.to_bytes(4, "big"), end)))
    return pngs


def plain_pillow(kind: str, **options: int) -> Callable[[NDArray[np.uint8]], list[bytes]]:
    def encode(images: NDArray[np.uint8]) -> list[bytes]:
        files = []
        for image in images:
            file = io.BytesIO()
            grey = image.shape[2] == 1
            Image.fromarray(image[..., 0] if grey else image).save(file, kind, **options)
            files.append(file.getvalue())
        return files

    return encode


ENCODERS: dict[str, tuple[int, Callable[..., list[bytes]], Callable[..., list[bytes]]]] = {
    "png": (4096, plain_png, encode_png),
    "jpeg": (
        500,
        plain_pillow("JPEG", quality=90, subsampling=0),
        lambda images, *label: encode_jpeg(images, 90, *label),
    ),
    "webp": (100, plain_pillow("WEBP", quality=90), lambda images, *label: encode_webp(images, 90, *label)),
}


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    print("encoding  shape      without        IPTC, ratio           IPTC and GB 45438, ratio")
    for name, (n, plain, labelled) in ENCODERS.items():
        for size, channels in SHAPES:
            images = pictures(n, size, channels)
            times: list[tuple[float, float, float]] = []
            for _ in range(rounds):
                times.append(
                    (
                        seconds(partial(plain, images)),
                        seconds(partial(labelled, images)),
                        seconds(partial(labelled, images, STAMP)),
                    )
                )
            shown = []
            for kind in (1, 2):
                ratios = sorted(row[kind] / row[0] for row in times)
                shown.append(f"{statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
            without = statistics.median(row[0] for row in times) / n * 1e6
            print(f"{name:9} {size}x{size}x{channels} {without:10.1f} us   {shown[0]:24} {shown[1]}")


if __name__ == "__main__":
    main()
