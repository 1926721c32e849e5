"""One shard of the spool: the items of a part of the source as pixels of one shape, and a record of what they were."""

import contextlib
import hashlib
import json
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from genai_ray.errors import UserError
from genai_ray.image.codec import SIZES, ImageCodec
from genai_ray.image.files import items, open_image
from genai_ray.image.items import FETCH, POINTER, Item, NoImageError, Pieces
from genai_ray.image.pixels import COARSE, Scale, depth_of, extremes, has_frames, is_grey, joined, mode_of
from genai_ray.image.spec import ImageDataSpec
from genai_ray.storage import Store

# Of one process, of which Ray runs one for each CPU.
_THREADS = 4  # that read and decode
_PIXELS = 25_000_000  # decoded at once: one photo of 24 megapixels
_PILLOW_BLOCK = 128 << 20
_SHOWN_BYTES = 12  # of content that is no image

Scales = Mapping[str, Scale]


@dataclass(frozen=True)
class Record:
    """A shard: its items in the source, of which it holds rows; positions and names of those that do not decode; sizes
    ("WxH") and modes of the others, and how many have them; SHA-256 of its bytes.

    depths: the least and the largest of deep values, by kind (see `pixels`). scales: with which those were made grey.
    frames: how many files hold several images, of which the first is read.
    """

    items: int
    rows: int
    channels: int
    skipped: list[tuple[int, str]]
    sizes: dict[str, int]
    modes: dict[str, int]
    digest: str
    depths: dict[str, Scale] = field(default_factory=dict[str, Scale])
    scales: dict[str, Scale] = field(default_factory=dict[str, Scale])
    frames: int = 0

    def __post_init__(self) -> None:
        for pairs in (self.depths, self.scales):  # JSON has lists
            pairs.update({kind: (low, high) for kind, (low, high) in pairs.items()})

    def follows(self, scales: Scales) -> bool:
        """Whether its deep images were made grey by these scales."""
        return all(scales[kind] == self.scales.get(kind) for kind in self.depths if kind != COARSE)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """pixels: (H, W, C), of one channel if the image is grey; None if it has a size that none may have."""

    pixels: NDArray[np.uint8] | None
    size: tuple[int, int]
    mode: str
    depths: dict[str, Scale]
    frames: bool


class _Room:
    """Bounds the pixels that are decoded at once; one image that is larger is let in alone."""

    def __init__(self, most: int):
        self._most, self._held, self._changed = most, 0, threading.Condition()

    @contextlib.contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


def make_shard(spec: ImageDataSpec, store: Store, index: int, pieces: Pieces, scales: Scales) -> Record:
    """Decode the items of a shard and put it, and then its record.

    Raises:
        UserError: naming an item that does not decode, unless data.on_corrupt=skip.
    """
    # So large that freed ones go back to the system, and do not stay with the thread that had them.
    Image.core.set_block_size(_PILLOW_BLOCK)
    decode, names, decoded = partial(_decode, spec, _Room(_PIXELS), scales), [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[str, Future[_Decoded | None]]] = deque()
        for item in items(spec, pieces):
            waiting.append((item.name, pool.submit(decode, item)))
            if len(waiting) > 2 * _THREADS:  # of which the content is in memory
                name, future = waiting.popleft()
                names.append(name)
                decoded.append(future.result())
        names += [name for name, _ in waiting]
        decoded += [future.result() for _, future in waiting]
    good = [image for image in decoded if image is not None]
    pixels = [image.pixels for image in good if image.pixels is not None]
    channels = max((p.shape[2] for p in pixels), default=1)
    uniform = len({p.shape[:2] for p in pixels}) == 1 and len(pixels) == len(good)
    content = stack(pixels, channels).tobytes() if uniform else b""
    record = Record(
        items=len(names),
        rows=len(pixels) if uniform else 0,
        channels=channels,
        skipped=[(i, name) for i, name in enumerate(names) if decoded[i] is None],
        sizes=dict(sorted(Counter("x".join(map(str, image.size)) for image in good).items())),
        modes=dict(sorted(Counter(image.mode for image in good).items())),
        digest=hashlib.sha256(content).hexdigest(),
        depths=joined(image.depths for image in good),
        scales=dict(scales),
        frames=sum(image.frames for image in good),
    )
    store.put(shard_name(index), content)
    store.put(f"shard-{index:06d}.json", json.dumps(asdict(record)).encode())
    return record


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.raw"


def stack(images: list[NDArray[np.uint8]], channels: int) -> NDArray[np.uint8]:
    """Images (N, H, W, C); a grey one among coloured ones has three equal channels."""
    stacked = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
    for row, image in zip(stacked, images, strict=True):
        row[:] = image
    return stacked


def _decode(spec: ImageDataSpec, room: _Room, scales: Scales, item: Item) -> _Decoded | None:
    """An image of the run's shape; None if it does not decode and is to be left out."""
    try:
        content = item.read()
    except NoImageError as error:
        return _left_out(spec, item, str(error), error.remedy)
    try:
        image = open_image(content, item.shape)
        with room.hold(image.width * image.height):
            return _of_shape(spec, scales, image)
    except MemoryError:
        raise
    except Exception as error:  # of all kinds, as Pillow's decoders raise what they meet
        remedy = "Remove it, or set data.on_corrupt=skip to leave such files out."
        remedy = f"{FETCH} Or: {remedy}" if content.startswith(POINTER) else remedy
        return _left_out(spec, item, _reason(error, content), remedy)


def _left_out(spec: ImageDataSpec, item: Item, reason: str, remedy: str) -> None:
    """Raises:
    UserError: unless data.on_corrupt=skip.
    """
    if spec.on_corrupt != "skip":
        rule = f"must be an image that decodes ({reason})"
        raise UserError("data.root", f"{spec.root}: {item.name}", rule, remedy)


def _of_shape(spec: ImageDataSpec, scales: Scales, image: Image.Image) -> _Decoded:
    """Decode an image that is open; raises anything if it is none."""
    depth, frames = depth_of(image), has_frames(image)
    image.load()
    size, mode = image.size, mode_of(image)
    depths = {} if depth is None else {depth: extremes(image)}
    side = spec.size or (size[0] if size[0] == size[1] and size[0] in SIZES else None)
    channels = spec.channels or (1 if is_grey(mode, spec.background) else 3)
    pixels = None
    if side is not None:
        pixels = ImageCodec(side, channels, None).encode(image, scales, spec.background)
    return _Decoded(pixels, size, mode, depths, frames)


def _reason(error: BaseException, content: bytes) -> str:
    """Why an item does not decode, without the addresses of objects that Pillow names."""
    if isinstance(error, UnidentifiedImageError):
        begins = f"it begins with {content[:_SHOWN_BYTES]!r}" if content else "it is empty"
        return f"in no format that Pillow reads; {begins}"
    known = isinstance(error, OSError | ValueError | SyntaxError)
    return str(error) if known and str(error) else f"{type(error).__name__} {error}".strip()
