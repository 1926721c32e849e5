"""ImageCodec: the shape that all images of a run are converted to, and its classes.

Shapes: N images, H = W = size pixels, C = 1 or 3 channels; arrays are NHWC, uint8, 0..255.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from genai_ray.errors import UserError, nearest
from genai_ray.image.pixels import FULL, Scale, flat, is_grey
from genai_ray.image.spec import ImageDataSpec, ImageGenerateSpec
from genai_ray.spec import GenerateSpec

#: Sizes that need no `data.size`, if all images have the same one.
SIZES = (8, 16, 28, 32, 56, 64, 112, 128)


@dataclass(frozen=True)
class ImageCodec:
    """The shape of all images of a run, and the names of their classes (None: no classes)."""

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
        assert isinstance(spec, ImageGenerateSpec)
        known = self.classes or ()
        for name in spec.classes or ():
            if name not in known:
                raise UserError("generate.classes", name, "is not a class of the data", nearest(name, known))

    def describe(self) -> dict[str, Any]:
        return {"images": f"{self.size}x{self.size}x{self.channels}", "classes": ", ".join(self.classes or ())}

    def encode(
        self, image: Image.Image, scales: Mapping[str, Scale] = FULL, background: str = "white"
    ) -> NDArray[np.uint8]:
        """A Pillow image of any size and mode as (H, W, C): turned by EXIF, flat, centre crop, antialiased bicubic.

        May change the image in place, as a copy of a large photo costs much memory.

        Args:
            scales: of deep values, see `pixels`.
            background: the colour under transparent pixels.
        """
        ImageOps.exif_transpose(image, in_place=True)
        image = flat(image, scales, background)
        mode = "L" if self.channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        if image.size != (self.size, self.size):
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image, np.uint8).reshape(self.size, self.size, self.channels)

    def to_json(self) -> dict[str, Any]:
        return {"modality": "image", **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ImageCodec":
        classes = values["classes"]
        return cls(values["size"], values["channels"], tuple(classes) if classes else None)


from_json = ImageCodec.from_json


def common_codec(spec: ImageDataSpec, sizes: set[tuple[int, int]], modes: set[str]) -> ImageCodec:
    """The codec for images of these sizes and modes, without classes.

    Raises:
        UserError: if the spec names no size, and the images have no common one of `SIZES`.
    """
    size = spec.size
    if size is None:
        width, height = next(iter(sizes))
        if len(sizes) > 1 or width != height or width not in SIZES:
            shown = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4]) + (", …" if len(sizes) > 4 else "")
            fits = max((side for side in SIZES if side <= min(map(min, sizes))), default=SIZES[0])
            remedy = f"Set data.size={fits}, or another of {', '.join(map(str, SIZES))}."
            raise UserError("data.size", None, f"is needed, since the images measure {shown}", remedy)
        size = width
    return ImageCodec(size, spec.channels or (1 if all(is_grey(mode, spec.background) for mode in modes) else 3), None)
