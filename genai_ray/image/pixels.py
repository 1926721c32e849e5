"""Images of any mode as grey or RGB of 8 bits: depth by one scale for a source, transparency laid on a colour.

A deep image has greys of more than 8 bits: integers or floats. What is black and what is white in them is no property
of one image, so the scale is that of the source.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, ImageOps

from genai_ray.errors import UserError
from genai_ray.image.spec import ImageDataSpec

Scale = tuple[float, float]
#: Deep modes, and what their values are.
DEEP = {"F": "floats"} | dict.fromkeys(("I", "I;16", "I;16L", "I;16B", "I;16N"), "integers")
GREY_MODES = ("1", "L", "LA", "La", *DEEP)
#: RGB or grey with alpha of 16 bits, of which Pillow gives the upper 8.
COARSE = "upper bytes"
#: Grey and RGB of 8 bits, of which masks use a few values alone.
BYTES = "bytes"
#: What is added to a mode whose images have transparent colours without a channel for them.
TRANSPARENT = " with transparency"
#: Scales of values that use all that their type can hold.
FULL: dict[str, Scale] = {"integers": (0, 65535), "floats": (0, 1), BYTES: (0, 255)}
#: Of 8 bits: images whose brightest value is less look all black. Of floats it is this, of 255.
DARK = 16
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_BITS = (8, 10, 12, 14, 16)
_OPAQUE = 255
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF, which Pillow follows for 8 bits alone
_COARSE = re.compile(r"\b(RGB[AXa]?|LA|CMYK);16")  # as Pillow writes what is stored


def is_transparent(mode: str) -> bool:
    """Whether images of a mode, as `mode_of` counts it, can have transparent pixels."""
    return mode in _ALPHA_MODES or mode.endswith(TRANSPARENT)


def is_grey(mode: str, background: str) -> bool:
    """Whether images of a mode are grey when they lie on a background."""
    coloured = is_transparent(mode) and len({*rgb(background)}) > 1
    return mode.removesuffix(TRANSPARENT) in GREY_MODES and not coloured


def mode_of(image: Image.Image) -> str:
    """The mode of an image, as it is counted."""
    extra = image.has_transparency_data and image.mode not in _ALPHA_MODES
    return image.mode + (TRANSPARENT if extra else "")


def depth_of(image: Image.Image) -> str | None:
    """What the values of an image are that has not been loaded: "integers", "floats", COARSE or BYTES; None: of a
    palette, with alpha, or of other colours than RGB.
    """
    if image.mode in DEEP:
        return DEEP[image.mode]
    tiles = getattr(image, "tile", ())
    if any(_COARSE.search(str(tile[3])) for tile in tiles):
        return COARSE
    return BYTES if image.mode in ("L", "RGB") else None


def extremes(image: Image.Image) -> Scale:
    """The least and the largest value of an image.

    Raises:
        ValueError: for floats that are NaN or infinite.
    """
    if image.mode in ("L", "RGB"):
        bounds = np.asarray(image.getextrema())
        return float(bounds.min()), float(bounds.max())
    values = np.asarray(image)
    values = values[..., :-1] if image.mode in ("LA", "RGBA") else values
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"it holds values from {low} to {high}")
    return low, high


def has_frames(image: Image.Image) -> bool:
    """Whether a file holds several images."""
    return bool(getattr(image, "is_animated", False))


def rgb(background: str) -> tuple[int, int, int]:
    red, green, blue, *_ = ImageColor.getrgb(background)
    return red, green, blue


def flat(image: Image.Image, scales: Mapping[str, Scale] = FULL, background: str = "white") -> Image.Image:
    """An image of 8 bits, and without transparent pixels; itself if it is so."""
    if image.mode in DEEP:
        values = np.asarray(image, np.float64)
        grey = Image.fromarray(_scaled(values, scales[DEEP[image.mode]]))
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            grey = ImageOps.invert(grey)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, _OPAQUE).astype(np.uint8)))
        image = grey
    elif image.mode == "LAB":  # which `convert` does not know
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    elif image.mode in ("L", "RGB") and (scale := scales.get(BYTES, FULL[BYTES])) != FULL[BYTES]:
        table = _scaled(np.arange(256, dtype=np.float64), scale).tolist()
        clear = image.info.get("transparency")
        image = image.convert("RGBA" if image.mode == "RGB" else "LA") if clear is not None else image
        bands = len(image.getbands())
        image = image.point(table * bands if clear is None else table * (bands - 1) + list(range(256)))
    return _laid_on(background, image) if image.has_transparency_data else image


def _scaled(values: NDArray[np.float64], scale: Scale) -> NDArray[np.uint8]:
    low, high = scale
    if scale == FULL["integers"]:
        grey = values / 257  # cut off, as in earlier versions
    else:
        grey = np.rint((values - low) * (255 / ((high - low) or 1)))
    return np.clip(grey, 0, 255).astype(np.uint8)


def _laid_on(background: str, image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > _OPAQUE:
        image.info["transparency"] = tuple(value >> 8 for value in clear)  # of 16 bits, as the pixels were
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("LA" if image.mode in ("1", "L", "La") else "RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == _OPAQUE:
        return image
    colour = rgb(background)
    grey = image.mode == "LA" and len({*colour}) == 1
    base = Image.new("L", image.size, colour[0]) if grey else Image.new("RGB", image.size, colour)
    base.paste(image.convert(base.mode), mask=alpha)
    return base


# --- the depth of a source -----------------------------------------------------------------------


def scales_of(spec: ImageDataSpec, found: Mapping[str, Scale]) -> dict[str, Scale]:
    """The scale of each kind of values, given the least and the largest that the source has.

    Raises:
        UserError: for 16-bit colour that the spec wants stretched, which the 8 bits that Pillow gives cannot be.
    """
    if COARSE in found and spec.depth != "full":
        bits = 8 + int(found[COARSE][1]).bit_length()
        if spec.depth != "auto" or bits < _BITS[-1]:
            raise UserError(
                "data.depth",
                spec.depth,
                f"cannot be followed for 16-bit colour, of which Pillow reads the upper 8 bits; the source uses {bits} "
                "of the 16",
                "Convert these images to 8 bits a channel, or set data.depth=full to take them as they are.",
            )
    return {kind: _scale(spec.depth, kind, *found.get(kind, FULL[kind])) for kind in FULL}


def _scale(depth: str | int, kind: str, low: float, high: float) -> Scale:
    if depth == "full" or (kind == BYTES and depth != "range"):
        return FULL[kind]
    if depth == "range" or (depth == "auto" and (low < 0 or high >= 2 ** _BITS[-1])):
        return low, high
    if kind == "floats" and high <= 1:
        return (low, high) if depth == "auto" and high < DARK / 255 else FULL[kind]
    if isinstance(depth, int):
        return 0, 2**depth - 1
    return 0, 2 ** next(bits for bits in _BITS if high < 2**bits) - 1


def joined(found: Iterable[Mapping[str, Scale]]) -> dict[str, Scale]:
    """The extremes of several parts of a source."""
    out: dict[str, Scale] = {}
    for part in found:
        for kind, (low, high) in part.items():
            before = out.get(kind, (low, high))
            out[kind] = min(low, before[0]), max(high, before[1])
    return out


def depth_summary(found: Mapping[str, Scale], scales: Mapping[str, Scale]) -> dict[str, str]:
    """What was found of depth and what became of it, for people."""
    out: dict[str, str] = {}
    for kind, (low, high) in sorted(found.items()):
        if kind == COARSE:
            out["16-bit colour"] = "the upper 8 bits"
        elif kind != BYTES or high < DARK or scales[kind] != FULL[kind]:
            black, white = scales[kind]
            out[kind] = f"{low:g} to {high:g}; {black:g} is black, {white:g} white"
    return out
