"""Pixels to PNG, JPEG and WebP files and back; each file says once that it is synthetic.

The label is a constant XMP packet with the id of the image inserted, which costs little compared with the encoding.
Pillow writes no metadata here.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genai_ray.image.codec import ImageCodec
from genai_ray.image.rows import ImageRows
from genai_ray.labels import ID_DIGITS, JPEG_XMP, PNG_XMP, produce_id, xmp_packet

_DEFLATE_LEVEL = 1
_JFIF = b"\xff\xd8\xff\xe0\0\x10JFIF"
_JFIF_END = 20
_LAST_DIGITS = [b"%03d" % i for i in range(1000)]


@dataclass(frozen=True)
class Stamp:
    """What the labels of a batch say: the producer, and ids of a prefix and a counter."""

    producer: str
    prefix: str
    start: int

    @property
    def length(self) -> int:
        return len(self.prefix) + ID_DIGITS

    def names(self) -> Iterator[bytes]:
        """The ids, without end; built by the thousand, as formatting is slow."""
        thousand, first = divmod(self.start, 1000)
        for upper in itertools.count(thousand):
            begin = f"{self.prefix}{upper:0{ID_DIGITS - 3}d}".encode()
            yield from [begin + end for end in _LAST_DIGITS[first:]]
            first = 0


def encode(rows: ImageRows) -> list[bytes]:
    """The samples of a shard as image files, or as plain bytes of pixels for `raw`."""
    if rows.encoding == "raw":
        flat = np.ascontiguousarray(rows.images).reshape(len(rows.images), -1)
        return [row.tobytes() for row in flat]
    stamp = None
    if rows.producer is not None:
        stamp = Stamp(rows.producer, produce_id(rows.provenance, ""), rows.start)
    if rows.encoding == "png":
        return encode_png(rows.images, stamp)
    return _ENCODERS[rows.encoding](rows.images, rows.quality, stamp)


def decode(cell: bytes, codec: ImageCodec, encoding: str) -> NDArray[np.uint8]:
    """The pixels (H, W, C) of an encoded image. Raises ValueError if it does not decode to the codec's shape."""
    if encoding == "raw":
        pixels = np.frombuffer(cell, np.uint8)
    else:
        try:
            image = Image.open(io.BytesIO(cell))
            # WebP has no grey images.
            pixels = np.asarray(image.convert("L" if codec.channels == 1 else "RGB"))
        except OSError as error:
            raise ValueError(f"is no whole image ({error})") from None
    return pixels.reshape(codec.size, codec.size, codec.channels)


def encode_png(images: NDArray[np.uint8], stamp: Stamp | None = None) -> list[bytes]:
    """PNG files of a batch (N, H, W, C), with an XMP packet that says they are synthetic.

    Rows of pixels are filtered by Up (PNG specification, section 9), one subtraction for the whole batch, and deflated
    by zlib. ISA-L takes a fifth of the time, but has given other bytes for the same pixels, once in some hundred
    thousand images.
    """
    n, height, width, channels = images.shape
    rows = images.reshape(n, height, width * channels)
    filtered = np.empty((n, height, 1 + width * channels), np.uint8)
    filtered[:, :, 0] = 2  # filter type Up; above the first row are zeros
    filtered[:, 0, 1:] = rows[:, 0]
    np.subtract(rows[:, 1:], rows[:, :-1], out=filtered[:, 1:, 1:])
    color_type = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    shared_label, labels = _png_labels(stamp)
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + shared_label
    compress, crc32, join = zlib.compress, zlib.crc32, b"".join
    tag_crc = crc32(b"IDAT")
    pngs = []
    pixels, step = filtered.data.cast("B"), filtered[0].size
    for offset, label in zip(range(0, n * step, step), labels, strict=False):
        body = compress(pixels[offset : offset + step], _DEFLATE_LEVEL)
        size, crc = len(body).to_bytes(4, "big"), crc32(body, tag_crc).to_bytes(4, "big")
        pngs.append(join((start, label, size, b"IDAT", body, crc, _END)))
    return pngs


def _chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


_END = _chunk(b"IEND", b"")


def _png_labels(stamp: Stamp | None) -> tuple[bytes, Iterable[bytes]]:
    """The iTXt chunk of the label: the part that all images share, then the rest of each."""
    if stamp is None:
        return _chunk(b"iTXt", PNG_XMP + xmp_packet()), itertools.repeat(b"")
    first, middle, last = _template(stamp)
    length = len(PNG_XMP + first + middle + last) + 2 * stamp.length
    body = b"iTXt" + PNG_XMP + first
    crc32, join = zlib.crc32, b"".join
    # The checksum of the shared part is computed once.
    shared = crc32(body)
    rests = ((own := join((name, middle, name, last))) + crc32(own, shared).to_bytes(4) for name in stamp.names())
    return length.to_bytes(4) + body, rests


def _packets(stamp: Stamp | None) -> tuple[bytes, int, Iterable[bytes]]:
    """XMP packets: what all images share; the length of the rest; the rest of each, without end."""
    if stamp is None:
        return xmp_packet(), 0, itertools.repeat(b"")
    first, middle, last = _template(stamp)
    rests = (b"".join((name, middle, name, last)) for name in stamp.names())
    return first, len(middle) + len(last) + 2 * stamp.length, rests


def _template(stamp: Stamp) -> list[bytes]:
    """The packet split at the two places of the id of the image."""
    # No producer has a blank in its name, so the holes are unambiguous.
    hole = " " * stamp.length
    return xmp_packet(stamp.producer, hole).split(hole.encode())


def encode_jpeg(images: NDArray[np.uint8], quality: int = 90, stamp: Stamp | None = None) -> list[bytes]:
    """JPEG files of a batch (N, H, W, C), with the label in an APP1 segment after JFIF's APP0."""
    packet, length, rests = _packets(stamp)
    size = struct.pack(">H", 2 + len(JPEG_XMP) + len(packet) + length)
    label = b"\xff\xe1" + size + JPEG_XMP + packet
    files = []
    for image, rest in zip(images, rests, strict=False):
        # Colour at full resolution, as the images are small.
        file = _pillow(image, "JPEG", quality=quality, subsampling=0)
        assert file[: len(_JFIF)] == _JFIF, "Pillow writes the header of JFIF"
        files.append(b"".join((file[:_JFIF_END], label, rest, file[_JFIF_END:])))
    return files


def encode_webp(images: NDArray[np.uint8], quality: int = 90, stamp: Stamp | None = None) -> list[bytes]:
    """WebP files of a batch (N, H, W, C): an extended header, the pixels, the label as XMP."""
    _, height, width, _ = images.shape
    # Flags with XMP alone, then the size less one in three bytes each (RFC 9649, section 2.7).
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    header = b"WEBPVP8X\x0a\0\0\0\x04\0\0\0" + sides
    packet, length, rests = _packets(stamp)
    length += len(packet)
    label, pad = b"XMP " + struct.pack("<I", length) + packet, bytes(length % 2)
    files = []
    for image, rest in zip(images, rests, strict=False):
        file = _pillow(image, "WEBP", quality=quality)
        assert file[12:16] in (b"VP8 ", b"VP8L"), "Pillow writes the simple format"
        body = b"".join((header, file[12:], label, rest, pad))
        files.append(b"RIFF" + len(body).to_bytes(4, "little") + body)
    return files


def _pillow(image: NDArray[np.uint8], kind: str, **options: int) -> memoryview:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, kind, **options)
    return file.getbuffer()


_ENCODERS: dict[str, Callable[..., list[bytes]]] = {"jpeg": encode_jpeg, "webp": encode_webp}
