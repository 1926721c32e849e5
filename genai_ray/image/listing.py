"""Which objects of a source are read, which are left out and why, and the splits that their names tell."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any
from urllib.parse import unquote

from genai_ray.errors import UserError
from genai_ray.image.spec import ImageDataSpec
from genai_ray.spec import assignment

#: Names of splits, as Hugging Face `datasets` reads them, in any case.
ROLES = {name: "train" for name in ("train", "training")}
ROLES |= {name: "test" for name in ("test", "testing", "eval", "evaluation")}
ROLES |= {name: "validation" for name in ("validation", "valid", "val", "dev")}
#: Names of files and folders that systems and programs leave, in lower case; and all that begin with a dot.
_SYSTEM = frozenset(
    "__macosx _temporary thumbs.db desktop.ini $recycle.bin #recycle @recycle #snapshot @eadir @__thumb _vti_cnf "
    "lost+found __pycache__".split()
) | {"system volume information", "network trash folder", "temporary items"}
#: Formats that Pillow names but does not decode to pixels by itself: vectors, which need Ghostscript, and films.
_NO_PIXELS = ("EPS", "MPEG")
NO_LABELS = "it has no labels"
_SHOWN = 8  # reasons and names in one message

Objects = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Chosen:
    """The objects of a source that are read.

    train: keys, sorted. holdout: keys of the split that is held out; None: a share of the samples is. left_out: reason
    -> number of objects. splits: name -> what becomes of it; empty if there are none. class_depth: how many folders of
    a key stand before that of its class.
    """

    train: Sequence[str]
    holdout: Sequence[str] | None
    left_out: Mapping[str, int]
    splits: Mapping[str, str]
    class_depth: int = 0

    @property
    def keys(self) -> list[str]:
        """Those that train, and then the others."""
        return [*self.train, *(self.holdout or ())]


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the formats whose pixels Pillow decodes."""
    from PIL import Image, ImageFile

    suffixes = Image.registered_extensions()  # which loads all formats

    def decodes(name: str) -> bool:
        opener: object = Image.OPEN[name][0] if name in Image.OPEN and name not in _NO_PIXELS else None
        return opener is not None and not (isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile))

    return frozenset(suffix for suffix, name in suffixes.items() if decodes(name))


def without_suffix(keys: Iterable[str]) -> list[str]:
    """Keys of files that are not hidden, and have no suffix to tell what they are."""
    return [key for key in keys if not os.path.splitext(key)[1] and not key.endswith("/") and not is_hidden(key)]


def choose_images(
    spec: ImageDataSpec, objects: Objects, lost: Sequence[str], begins_as_image: Callable[[str], bool]
) -> Chosen:
    """The image files of a folder.

    lost: links and folders that cannot be followed. begins_as_image: of an object whose name has no suffix.

    Raises:
        UserError: if there is no image, if images stand both beside and in folders of classes, or if it is not clear
            which of them train.
    """
    unnamed = {key for key in without_suffix(objects) if begins_as_image(key)}
    keys, left_out = _of_suffixes(objects, image_suffixes(), lost, is_hidden, unnamed)
    if not keys:
        raise _holds_none(spec, "images", left_out)
    folders = {key: key.split("/")[:-1] for key in keys}
    split_depth, class_depth = _depths(list(folders.values()))

    def split_of(key: str) -> str | None:
        names = folders[key]
        return role_of(names[split_depth]) if len(names) > split_depth else None

    splits = _by_split(spec, keys, split_of)
    if not splits and not any(folders.values()):
        splits = _by_file_names(spec, keys)
    named = {folders[key][split_depth].lower() for key in keys if split_of(key)}
    if len(splits) == 2 and None in splits and not any(len(folders[k]) > 1 for k in keys if split_of(k)):
        splits = {}  # one class of several is called so
    elif not named <= ROLES.keys() and ("train" not in splits or len(splits.keys() - {None}) < 2):
        splits = {}  # classes such as test1 and test2
    if not splits:
        _check_depths(spec, keys, 0)
        return Chosen(keys, None, left_out, {})
    _check_depths(spec, _training(spec, splits), class_depth)

    trained = {class_of(key, class_depth) for key in _training(spec, splits)} - {None}

    def lacking(some: Sequence[str]) -> str:
        classes = {class_of(key, class_depth) for key in some} - {None}
        return NO_LABELS if not classes else "" if classes & trained else "it has none of the classes that train"

    return _chosen(spec, splits, left_out, lacking, class_depth)


def choose_parquet(
    spec: ImageDataSpec, objects: Objects, lost: Sequence[str], lacking: Callable[[Sequence[str]], str]
) -> Chosen:
    """The Parquet files of a folder.

    lacking: why some files cannot be samples of classes; empty if they can.

    Raises:
        UserError: if there is no file, or it is not clear which of them train.
    """
    keys, left_out = _of_suffixes(objects, frozenset({".parquet"}), lost, is_hidden_file)
    if not keys:
        raise _holds_none(spec, "Parquet", left_out)
    splits = _by_split(spec, keys, _split_of_file)
    return _chosen(spec, splits, left_out, lacking, 0) if splits else Chosen(keys, None, left_out, {})


def role_of(name: str) -> str | None:
    """The split that a folder is named by, also among other words: `train2017`, `test_set`, `Validation Data`."""
    words = re.findall("[A-Z]?[a-z]+|[A-Z]+", name)
    roles = {ROLES[word.lower()] for word in words if word.lower() in ROLES}
    return roles.pop() if len(roles) == 1 else None


def class_of(key: str, class_depth: int) -> str | None:
    """The folder that names the class of an image; None if it is not in one."""
    folders = key.split("/")[:-1]
    return folders[class_depth] if len(folders) > class_depth else None


def readable(name: str) -> str:
    """A name of a file in which bytes that are no UTF-8, as in archives of other systems, are written as such."""
    return os.fsencode(name).decode(errors="backslashreplace")


def numbers_if_all(labels: Sequence[str | None]) -> list[Any]:
    """Labels as numbers if all are written as such, so that 2 stands before 10."""
    canonical = all(label is None or (label.isdecimal() and str(int(label)) == label) for label in labels)
    return [None if label is None else int(label) for label in labels] if canonical else list(labels)


def plain_names(names: Sequence[str | None]) -> list[str | None]:
    """Names of classes; of folders such as `label=cat`, if all are so, the values."""
    plain = [name and readable(name) for name in names]
    plain = [name and unicodedata.normalize("NFC", name) for name in plain]  # macOS writes names in another form
    parts = [(name or "").partition("=") for name in plain]
    if {key for key, _, _ in parts} != {parts[0][0]} or not all(value for _, _, value in parts):
        return plain
    return [unquote(value) for _, _, value in parts]


def is_hidden(key: str) -> bool:
    return any(part.startswith(".") or part.lower() in _SYSTEM for part in key.split("/"))


def is_hidden_file(key: str) -> bool:
    """Of Parquet: writers of many files mark what is not data by an underscore, too."""
    return is_hidden(key) or any(part.startswith("_") and "=" not in part for part in key.split("/"))


def few(counts: Mapping[str, int], most: int = _SHOWN) -> dict[str, int]:
    """Counts for people: the largest, and the others together."""
    ordered = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1])
    rest = sum(count for _, count in ordered[most:])
    return dict(ordered[:most]) | ({"others": rest} if rest else {})


def shown(counts: Mapping[str, int]) -> str:
    """Counts for a message."""
    return ", ".join(f"{name}: {count:,}" for name, count in few(counts).items())


# --- what is read --------------------------------------------------------------------------------


def _of_suffixes(
    objects: Objects,
    suffixes: frozenset[str],
    lost: Sequence[str],
    hidden: Callable[[str], bool],
    unnamed: Set[str] = frozenset(),
) -> tuple[list[str], dict[str, int]]:
    """Sorted keys that have one of the suffixes or are among `unnamed`, and how many others there are, by reason."""
    keys: list[str] = []
    counts: Counter[str] = Counter()
    for key in sorted(objects):
        suffix = os.path.splitext(key)[1].lower()
        if key.endswith("/"):
            continue  # on S3, the mark of an empty folder
        if hidden(key):
            counts["hidden"] += 1
        elif suffix in suffixes or key in unnamed:
            keys.append(key)
        else:
            counts[f"suffix {suffix}" if suffix else "no suffix"] += 1
    counts["link or folder that cannot be followed"] += len(lost)
    return keys, {reason: count for reason, count in counts.most_common() if count}


def _holds_none(spec: ImageDataSpec, what: str, left_out: Mapping[str, int]) -> UserError:
    rule = f"must hold {what}, and holds none" + (f" ({shown(left_out)})" if left_out else "")
    remedy = "Check the path, or convert the files to PNG or JPEG; classes are sub-folders."
    if spec.source == "folder" and "suffix .parquet" in left_out:
        remedy = "Set data.source=parquet to read the images in the Parquet files."
    elif spec.source == "folder" and {"suffix .zip", "suffix .tar", "suffix .gz", "suffix .tgz"} & left_out.keys():
        remedy = "Unpack the archives there."
    elif spec.source == "parquet":
        is_folder = any(f"suffix {suffix}" in left_out for suffix in image_suffixes())
        remedy = "Check the path; names of Parquet files must end in .parquet."
        remedy = "Set data.source=folder to read the image files." if is_folder else remedy
    return UserError("data.root", spec.root, rule, remedy)


def _check_depths(spec: ImageDataSpec, keys: Sequence[str], class_depth: int) -> None:
    """Raises:
    UserError: if some images are in folders of classes and some are not.
    """
    nested = [key for key in keys if class_of(key, class_depth) is not None]
    if nested and len(nested) < len(keys):
        loose = next(key for key in keys if class_of(key, class_depth) is None)
        rule = f"has images both beside ({loose}) and in ({nested[0]}) sub-folders"
        raise UserError("data.root", spec.root, rule, "Put every image in the sub-folder of its class, or none.")


# --- splits --------------------------------------------------------------------------------------


def _depths(folders: Sequence[list[str]]) -> tuple[int, int]:
    """At which depth folders name splits, if any do, and at which classes."""
    # What the first and the last in order share, all share.
    pairs = zip(min(folders), max(folders), strict=False)
    common = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    for depth, name in enumerate(common):
        if name.lower() in ROLES:  # the only split
            return depth, depth + 1
    depth = len(common)
    inner = {names[depth + 1] if len(names) > depth + 1 else "" for names in folders}
    return (depth + 1, depth) if all(map(role_of, inner)) else (depth, depth + 1)


def _split_of_file(key: str) -> str | None:
    """`train-00000-of-00001.parquet`, `data/test.parquet`, `default/validation/0000.parquet`, `split=dev/…`."""
    *folders, name = key.split("/")
    words = re.findall("[A-Za-z]+", name.rpartition(".")[0])
    names = [folder.lower().removeprefix("split=").removeprefix("partial-") for folder in folders]
    names += [word.lower() for word in (*words[:1], *words[-1:])]
    inner = {ROLES[word.lower()] for word in words if word.lower() in ROLES}
    return next((ROLES[name] for name in names if name in ROLES), inner.pop() if len(inner) == 1 else None)


def _by_file_names(spec: ImageDataSpec, keys: Sequence[str]) -> dict[str | None, list[str]]:
    """Loose images by split, if each of them begins with the name of one: `train_001.png`, `test_001.png`."""
    splits = _by_split(spec, keys, lambda key: ROLES.get(re.split("[^A-Za-z]", key)[0].lower()))
    return splits if len(splits) > 1 and None not in splits and "train" in splits else {}


def _by_split(
    spec: ImageDataSpec, keys: Sequence[str], split_of: Callable[[str], str | None]
) -> dict[str | None, list[str]]:
    """Keys by split, under None those of no split; empty if no key is of a split."""
    if spec.splits == "none":
        return {}
    splits: defaultdict[str | None, list[str]] = defaultdict(list)
    for key in keys:
        splits[split_of(key)].append(key)
    return {} if list(splits) == [None] else dict(splits)


def _training(spec: ImageDataSpec, splits: Mapping[str | None, list[str]]) -> list[str]:
    """The keys of the split that trains.

    Raises:
        UserError: if there are several splits, and none trains; or if there are objects of no split.
    """
    train = splits.get("train") or (next(iter(splits.values())) if len(splits) == 1 else None)
    if train is not None and None not in splits:
        return train
    names = ", ".join(f"{name or 'no split'} ({keys[0]})" for name, keys in splits.items())
    raise UserError(
        "data.root",
        spec.root,
        f"does not say what trains: it holds files of {names}",
        "Set data.splits=none to read all files alike, whatever their names; or name the folder or the file that "
        "trains, such as " + assignment(("data", "root"), _example(spec, splits)) + ".",
    )


def _example(spec: ImageDataSpec, splits: Mapping[str | None, list[str]]) -> str:
    """What a user may have meant to train on."""
    key = (splits.get("train") or splits.get(None) or next(iter(splits.values())))[0]
    root = str(spec.root).rstrip("/")
    if spec.source == "parquet":
        return f"{root}/{key}"
    folders = key.split("/")[:-1]
    exact = (i for i, name in enumerate(folders) if name.lower() in ROLES)
    depth = next(exact, next((i for i, name in enumerate(folders) if role_of(name)), 0))
    return "/".join([root, *folders[: depth + 1]])


def _chosen(
    spec: ImageDataSpec,
    splits: Mapping[str | None, list[str]],
    left_out: Mapping[str, int],
    lacking: Callable[[Sequence[str]], str],
    class_depth: int,
) -> Chosen:
    """The split that trains, and the one that is held out: test, else validation, unless a share is asked for."""
    train = _training(spec, splits)
    others = [name for name in ("test", "validation") if name in splits and splits[name] is not train]
    uses = {str(name): "trains" for name, keys in splits.items() if keys is train}
    holdout, out = None, dict(left_out)
    classes = bool(others) and spec.holdout is None and not lacking(train)
    for name in others:
        if spec.holdout is not None:
            uses[name] = "left out, as data.holdout is given"
        elif holdout is not None:
            uses[name] = "left out"
        elif classes and (reason := lacking(splits[name])):
            uses[name] = f"left out, as {reason}"
        else:
            uses[name], holdout = "holdout", splits[name]
        if splits[name] is not holdout:
            out[f"split {name}"] = len(splits[name])
    return Chosen(train, holdout, out, uses, class_depth)
