"""What a source of images holds, for people, without a run."""

import os
from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.errors import UserError
from genai_ray.image.cells import described
from genai_ray.image.files import begins_as_image, items, list_source, open_image
from genai_ray.image.items import Item, NoImageError, Source, store_of
from genai_ray.image.listing import few, image_suffixes, is_hidden, is_hidden_file, without_suffix
from genai_ray.image.pixels import BYTES, Scale, depth_of, extremes, has_frames, joined, mode_of
from genai_ray.image.source import in_memory_source
from genai_ray.image.spec import ImageDataSpec
from genai_ray.image.spool import of_training, train_and_holdout
from genai_ray.image.summary import lines_of, share_of, summary_of
from genai_ray.modality import Json
from genai_ray.spec import DataSpec
from genai_ray.storage import Store

_LOOKED_AT = 1_000  # images, in runs of _RUN consecutive ones
_RUN = 50
_SMALL = 1 << 16  # pixels
#: Files of ours that say that a folder is a run or a data set, and ends of those that say that it holds one.
_OF_RUNS, _OF_INNER_RUNS = {"spec.yaml", "manifest.json"}, ("dataset/manifest.json", "model/generator.onnx")
_TABLES = (".csv", ".tsv", ".parquet")


def describe(spec: DataSpec) -> Json:
    """The same as `ImageData.summary`, by a look at up to 1,000 images of a folder or Parquet.

    Raises:
        UserError: as loading does, but for images that do not decode.
    """
    assert isinstance(spec, ImageDataSpec)
    if (small := in_memory_source(spec)) is not None:
        return small.summary
    source = list_source(spec)
    found, kept = _looked_at(spec, source)
    labels, classes = source.labels(kept)
    n, left_out = int(kept.sum()), dict(source.chosen.left_out)
    if not n:
        raise UserError("data.root", spec.root, "holds no image that decodes", "Check the files.")
    trained = None if source.trained is None else int(kept[: source.trained].sum())
    if labels is not None and classes is not None:
        left_out["no label"] = int((labels < 0).sum())
        train, _ = train_and_holdout(spec, n, trained, labels)
        labels, classes = of_training(labels, classes, train)
        left_out["class that does not train"] = int((labels < 0).sum()) - left_out["no label"]
    train, holdout = train_and_holdout(spec, n, trained, labels)
    why = share_of(spec)
    if trained is not None:
        why = "the split " + next(name for name, use in source.chosen.splits.items() if use == "holdout")
    left_out["no image"] = len(kept) - n
    found |= {"left out": few(left_out), "splits": dict(source.chosen.splits)}
    return summary_of(classes, labels, len(train) + len(holdout), f"{len(holdout):,}, {why}", found)


def recognised(uri: str) -> Json:
    """The `data` section that reads a folder of images, or Parquet with an image column; empty for all else."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    if name.lower().endswith(".parquet") and (found := _described(store_of(folder or "."), name)):
        return {"source": "parquet", "root": uri, **found}
    if "://" in uri and not uri.startswith(("s3://", "file://")):
        return {}
    store = store_of(uri.rstrip("/") or "/")
    objects = store.listing()
    keys = sorted(objects)
    if _OF_RUNS & set(keys) or any(key.endswith(_OF_INNER_RUNS) for key in keys):
        return {}
    parquet = next((key for key in keys if key.lower().endswith(".parquet") and not is_hidden_file(key)), None)
    if parquet is not None and (found := _described(store, parquet)):
        return {"source": "parquet", "root": uri, **found}
    suffixes = Counter(os.path.splitext(key)[1].lower() for key in keys if not is_hidden(key))
    images = sum(suffixes[suffix] for suffix in image_suffixes())
    if any(begins_as_image(store.uri, key, objects[key][1]) for key in without_suffix(keys)[:_RUN]):
        images += suffixes[""]
    return {"source": "folder", "root": uri} if images > sum(suffixes[suffix] for suffix in _TABLES) else {}


def _described(store: Store, key: str) -> Json:
    about = store.listing(key).get(key)
    try:
        return {} if about is None else described(store, (key, *about))
    except (OSError, pa.ArrowInvalid):  # which is for who reads it as a table to report
        return {}


def _looked_at(spec: ImageDataSpec, source: Source) -> tuple[Json, NDArray[np.bool_]]:
    """Sizes, modes and depth of images that are spread over the source, of which the headers are read; and a mask (N,)
    that is false for what is no image.
    """
    n = len(source.nbytes)
    starts = list(range(0, n, _RUN))
    if n > _LOOKED_AT:
        starts = np.linspace(0, n - _RUN, _LOOKED_AT // _RUN).astype(int).tolist()
    sizes, modes, several, looked_at = Counter[str](), Counter[str](), 0, 0
    depths: list[dict[str, Scale]] = []
    kept = np.ones(n, bool)
    for start in starts:
        for index, item in enumerate(items(spec, source.pieces(start, min(n, start + _RUN))), start):
            looked_at += 1
            image = _opened(item, decode=index == start)
            if image is None:
                kept[index] = False
                continue
            size, mode, depth, frames = image
            sizes[size] += 1
            modes[mode] += 1
            depths.append(depth)
            several += frames
    found = lines_of(spec, sizes, modes, joined(depths), several)
    if looked_at < n:
        found["looked at"] = f"{looked_at:,} of {n:,}, for sizes, modes and depth"
    return found, kept


def _opened(item: Item, *, decode: bool) -> tuple[str, str, dict[str, Scale], bool] | None:
    """Size, mode and depth of an image, and whether its file holds more; None if it is none. decode: also a large image
    of 8 bits, for its extremes.
    """
    try:
        content = item.read()
    except NoImageError:
        return None
    try:
        image = open_image(content, item.shape)
        depth, frames = depth_of(image), has_frames(image)
        headers = depth == BYTES and not decode and image.width * image.height > _SMALL
        depths = {} if depth is None or headers else {depth: extremes(image)}
        return f"{image.width}x{image.height}", mode_of(image), depths, frames
    except Exception:  # see `decode`
        return None
