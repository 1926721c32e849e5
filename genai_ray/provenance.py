"""ModelCard, FileRecord, ShardReceipt and Manifest: the records that are stored with the data.

All are frozen values with a JSON form. A reader trusts only the manifest; a resumed job trusts only receipts.
"""

import builtins
import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from genai_ray.errors import UserError
from genai_ray.labels import DIGITAL_SOURCE_TYPE

SCHEMA_VERSION = 1


class _Json:
    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))  # pyright: ignore

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        values = json.loads(text)
        known = {f.name for f in fields(cls)}  # pyright: ignore
        return cls(**{k: v for k, v in values.items() if k in known})


@dataclass(frozen=True, kw_only=True)
class ModelCard(_Json):
    """All that is needed to generate from a model file, and the origin of the model.

    codec: the meaning of the graph's output (modality, size, channels, classes).
    latent: length of a noise vector, drawn from `noise` (always "standard_normal").
    training: samples seen, fingerprint and source of the training run.
    given: how many columns of a table one label can fix: one, or any.
    precision: of the weights: fp32, fp16 or int8.
    """

    name: str
    preset: str
    family: str
    latent: int
    conditional: bool
    codec: dict[str, Any]
    training: dict[str, Any]
    versions: dict[str, str]
    noise: str = "standard_normal"
    given: str = "one"
    precision: str = "fp32"
    synthetic: str = DIGITAL_SOURCE_TYPE
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class FileRecord(_Json):
    """One object of a data set; `path` is relative to the data set."""

    path: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str, rows: int, data: "builtins.bytes") -> "FileRecord":
        return cls(path=path, rows=rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, kw_only=True)
class ShardReceipt(_Json):
    """What a shard holds; written after its files, never before.

    attempts: samples that were drawn for it, including those that did not fit a condition.
    """

    index: int
    start: int
    stop: int
    fingerprint: str
    files: list[dict[str, Any]] = field(default_factory=list)
    attempts: int = 0

    @staticmethod
    def key(index: int) -> str:
        return f"_receipts/{index:06d}.json"


@dataclass(frozen=True, kw_only=True)
class Manifest(_Json):
    """What a data set holds; written once, last. A file that it does not list is not part of the data set.

    accept_rate: share of the samples drawn that fit the conditions and constraints.
    """

    fingerprint: str
    fields: dict[str, Any]
    model: str
    card: dict[str, Any]
    rows: int
    bytes: int
    files: list[dict[str, Any]]
    shards: list[dict[str, int]]
    columns: dict[str, str]
    versions: dict[str, str]
    accept_rate: float = 1.0
    synthetic: str = DIGITAL_SOURCE_TYPE
    schema_version: int = SCHEMA_VERSION

    @property
    def about(self) -> dict[str, Any]:
        """The origin of the data set, as a report shows it."""
        return {
            "data set": self.fingerprint,
            "digital source type": self.synthetic,
            "model card": self.card,
            "versions": self.versions,
        }


# --- the model file ------------------------------------------------------------------------------

#: Key of the model in a run.
MODEL_KEY = "model/generator.onnx"
CARD_KEY = "genai_ray.card"
DIGEST_KEY = "genai_ray.digest"
#: What the exporter writes in place of the digest.
BLANK = "0" * 64


def seal(model: bytes) -> tuple[bytes, str]:
    """Write the digest of a model file over its blank.

    The digest is the SHA-256 of the file with 64 zeros in its place, so the file can carry it.
    """
    assert model.count(BLANK.encode()) == 1, "the exporter leaves exactly one blank digest"
    digest = hashlib.sha256(model).hexdigest()
    return model.replace(BLANK.encode(), digest.encode()), digest


def open_card(metadata: dict[str, str], model: bytes, *, where: str) -> tuple[ModelCard, str]:
    """The card and digest of a model file, checked.

    Args:
        metadata: the metadata properties of the ONNX file.
        model: the bytes of the file.
        where: its path, for messages.

    Raises:
        UserError: if the file has no card, was altered, or is of a newer schema.
    """
    remedy = "Export it again with `genai-ray export`."
    if CARD_KEY not in metadata or DIGEST_KEY not in metadata:
        raise UserError("model", where, "must be an ONNX file with a genai_ray card", remedy)
    digest = metadata[DIGEST_KEY]
    if hashlib.sha256(model.replace(digest.encode(), BLANK.encode())).hexdigest() != digest:
        raise UserError("model", where, "was altered after its export (digest differs)", remedy)
    version = json.loads(metadata[CARD_KEY]).get("schema_version")
    if version > SCHEMA_VERSION:
        raise UserError(
            "model", where, f"has card schema {version}, this version reads {SCHEMA_VERSION}", "Upgrade genai-ray."
        )
    return ModelCard.from_json(metadata[CARD_KEY]), digest
