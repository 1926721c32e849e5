"""What the sources of images have in common: items by number, and objects in a folder or on S3."""

import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_ray.errors import UserError
from genai_ray.image.listing import Chosen, Objects
from genai_ray.image.spec import ImageDataSpec
from genai_ray.spec import assignment
from genai_ray.storage import Store, s3_spelling

#: (N,) class numbers, -1 for an item without a label, and names of the classes; None and None without classes.
Labels = tuple[NDArray[np.int64] | None, tuple[str, ...] | None]
Pieces = list[list[Any]]

#: How a file begins that Git LFS has not fetched.
POINTER = b"version https://git-lfs"
FETCH = "It is a pointer of Git LFS; `git lfs pull` in its folder fetches the file."
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Suffixes of archives, and the module of Python that unpacks them.
_ARCHIVES = {".zip": "zipfile", **dict.fromkeys(_TARS, "tarfile"), ".7z": "", ".rar": ""}


@dataclass(frozen=True, eq=False)
class Source:
    """The items of a source, N of them.

    stamp: digest of object names, sizes and versions. nbytes: (N,) of each item, as stored. pieces: items start..stop
    as JSON values that `items` reads on any node. labelled: whether there are classes. labels: of the items of a mask
    (N,). columns: of Parquet. trained: how many items train, which are the first; None: a share of all is held out.
    chosen: its objects.
    """

    stamp: str
    nbytes: NDArray[np.int64]
    pieces: Callable[[int, int], Pieces]
    labelled: bool
    labels: Callable[[NDArray[np.bool_]], Labels]
    columns: tuple[str, ...]
    trained: int | None
    chosen: Chosen


@dataclass(frozen=True)
class Item:
    """read: its content; raises NoImageError if there is none. shape: (H, W, C) of raw pixels; None if the content is
    an image file.
    """

    name: str
    read: Callable[[], bytes]
    shape: tuple[int, ...] | None = None


class NoImageError(ValueError):
    """An item without content; remedy: what to do about it, unless it is left out."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason)
        self.remedy = remedy


@lru_cache(maxsize=8)
def store_of(uri: str) -> Store:
    """One connection per store and process."""
    return Store(uri, "data.root")


def listed(spec: ImageDataSpec, store: Store, prefix: str = "") -> tuple[Objects, list[str]]:
    """The objects of a source, and the links and folders that cannot be followed."""
    lost: list[str] = []
    objects, folder = store.listing(prefix, lost), store.path()
    if folder is not None and not folder.is_dir():
        raise root_error(spec, "must be a folder that exists", "Check the path.")
    return objects, lost


def stamp(objects: Objects, keys: Sequence[str]) -> str:
    lines = (f"{key}\0{objects[key][0]}\0{objects[key][1]}\n" for key in keys)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def root_error(spec: ImageDataSpec, rule: str, remedy: str) -> UserError:
    return UserError("data.root", spec.root, rule, remedy)


def check_root(spec: ImageDataSpec) -> None:
    """Raises:
    UserError: for a root that is neither a folder nor on S3, with the way to make it one.
    """
    root = str(spec.root)
    scheme, separator, rest = root.partition("://")
    name = PurePosixPath(root).name
    if separator and scheme not in ("s3", "file"):
        remedy = s3_spelling(root) or _copy_of(scheme, rest, name or "images")
        raise root_error(spec, "must be a folder or start with s3://", remedy)
    suffix = next((suffix for suffix in _ARCHIVES if name.lower().endswith(suffix)), None)
    if suffix is not None and (separator or Path(root).is_file()):
        folder = root[: -len(suffix)].rpartition("://")[2]
        command = f"python3 -m {_ARCHIVES[suffix]} -e {shlex.quote(root)} {shlex.quote(folder)}"
        remedy = f"Unpack it: `{command}`; then {assignment(('data', 'root'), folder)}."
        if separator or not _ARCHIVES[suffix]:
            remedy = "Unpack it, and name the folder or the prefix of the files."
        raise root_error(spec, "is an archive, and must be a folder", remedy)
    if not separator and Path(root).is_file() and not (spec.source == "parquet" and name.lower().endswith(".parquet")):
        if spec.source == "parquet":
            remedy = "Give it a name that ends in .parquet."
        elif name.lower().endswith(".parquet"):
            remedy = "Set data.source=parquet to read the images in it."
        else:
            remedy = f"Name its folder: {assignment(('data', 'root'), str(Path(root).parent))}."
        raise root_error(spec, "is a file, and must be a folder", remedy)


def _copy_of(scheme: str, rest: str, name: str) -> str:
    """How to copy what another protocol serves."""
    folder, source = shlex.quote(name), shlex.quote(f"{scheme}://{rest}")
    commands: Mapping[str, str] = {
        "hf": f"hf download {shlex.quote(_repository(rest))} --repo-type dataset --local-dir {folder}",
        "gs": f"gcloud storage cp -r {source} .",
        "https": f"curl -fLO {source}",
        "http": f"curl -fLO {source}",
    }
    if scheme not in commands:
        return "Copy it to a folder or to an S3 bucket, and name that."
    return f"Copy it: `{commands[scheme]}`; then {assignment(('data', 'root'), name)}."


def _repository(rest: str) -> str:
    """u/x of datasets/u/x/…"""
    parts = rest.removeprefix("datasets/").split("/")
    return "/".join(parts[:2]).partition("@")[0]
