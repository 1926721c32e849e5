"""ImageCodec: the one shape that the images of a run are brought to, and its classes.

Shapes: N images, H = W = size pixels, C = 1 or 3 channels; arrays are NHWC, uint8, 0..255.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from genai_ray.errors import UserError, nearest
from genai_ray.image.spec import ImageDataSpec, ImageGenerateSpec
from genai_ray.spec import GenerateSpec

#: Sizes that are taken as they are; an image of any other is brought to `data.size`.
SIZES = (8, 16, 28, 32, 56, 64, 112, 128)
GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")


@dataclass(frozen=True)
class ImageCodec:
    """The one shape of the images of a run, and the names of their classes (None: no classes)."""

    size: int
    channels: int
    classes: tuple[str, ...] | None

    modality: ClassVar[str] = "image"

    @property
    def label_width(self) -> int:
        return len(self.classes or ())

    def labels(self, count: int) -> NDArray[np.int64]:
        return np.arange(count) % max(1, self.label_width)

    def check(self, spec: GenerateSpec) -> None:
        """That the classes asked for are there."""
        assert isinstance(spec, ImageGenerateSpec)
        for name in spec.classes or ():
            if name not in (self.classes or ()):
                raise UserError(
                    "generate.classes", name, "is not a class of the data", nearest(name, self.classes or ())
                )

    def describe(self) -> dict[str, Any]:
        return {"images": f"{self.size}x{self.size}x{self.channels}", "classes": ", ".join(self.classes or ())}

    def encode(self, image: Image.Image) -> NDArray[np.uint8]:
        """A Pillow image of any size and mode as (H, W, C): centre crop, antialiased bicubic.

        The image may be changed, as a copy of a large photo costs much memory.
        """
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "I;16", "F"):
            depth = np.asarray(image, np.float64)
            image = Image.fromarray(np.clip(depth / 257, 0, 255).astype(np.uint8))
        if "transparency" in image.info:
            image = image.convert("RGBA")  # which Pillow would else only advise
        mode = "L" if self.channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        if image.size != (self.size, self.size):
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image, np.uint8).reshape(self.size, self.size, self.channels)

    def decode(self, array: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(array[..., 0] if self.channels == 1 else array)

    def to_json(self) -> dict[str, Any]:
        return {"modality": "image", **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ImageCodec":
        classes = values["classes"]
        return cls(values["size"], values["channels"], tuple(classes) if classes else None)


def from_json(values: dict[str, Any]) -> ImageCodec:
    """The codec as a model card or a checkpoint holds it."""
    return ImageCodec.from_json(values)


def common_codec(spec: ImageDataSpec, sizes: set[tuple[int, int]], modes: set[str]) -> ImageCodec:
    """The codec for images of these sizes and modes, without classes.

    Raises:
        UserError: if the spec names no size, and they have not one that can be taken.
    """
    size = spec.size
    if size is None:
        width, height = next(iter(sizes))
        if len(sizes) > 1 or width != height or width not in SIZES:
            shown = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
            raise UserError(
                "data.size",
                None,
                f"is needed, since the images measure {shown}{', …' if len(sizes) > 4 else ''}",
                f"Choose one of {SIZES}.",
            )
        size = width
    return ImageCodec(size, spec.channels or (1 if modes <= set(GREY_MODES) else 3), None)
