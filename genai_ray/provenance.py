"""ModelCard, FileRecord, ShardReceipt and Manifest: what is written beside the data.

All are frozen values that turn into JSON and back. A reader trusts the manifest only; a resumed job
trusts receipts only. The labels say that content is synthetic, in the words of the standards.
"""

import builtins
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from genai_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1

#: IPTC DigitalSourceType of media made by a trained model (full URI, as the standard requires).
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


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
    """All that is needed to generate from a model file, and where the model came from.

    codec: how the graph's output is to be read (modality, size, channels, classes).
    latent: numbers in one noise vector, drawn from `noise` (always "standard_normal").
    training: samples seen, fingerprint and source of the training run.
    given: how many columns of a table may be fixed in one label: one, or any.
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
    """Written after the files of a shard, never before: what the shard holds.

    attempts: samples that were drawn for it, with those that did not fit a condition.
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
    """Written once, last. A file that it does not list is not part of the data set.

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
        """Where the data set came from, as a report shows it."""
        return {
            "data set": self.fingerprint,
            "digital source type": self.synthetic,
            "model card": self.card,
            "versions": self.versions,
        }


# --- the model file ------------------------------------------------------------------------------

#: Where the model lies in a run.
MODEL_KEY = "model/generator.onnx"
CARD_KEY = "genai_ray.card"
DIGEST_KEY = "genai_ray.digest"
#: What the exporter writes where the digest will stand.
BLANK = "0" * 64


def seal(model: bytes) -> tuple[bytes, str]:
    """Write the digest of a model file into the place that was left blank for it.

    The digest is the SHA-256 of the file with 64 zeros in that place, so the file can carry it.
    """
    assert model.count(BLANK.encode()) == 1, "the exporter leaves exactly one blank digest"
    digest = hashlib.sha256(model).hexdigest()
    return model.replace(BLANK.encode(), digest.encode()), digest


def open_card(metadata: dict[str, str], model: bytes, *, where: str) -> tuple[ModelCard, str]:
    """The card and digest of a model file, checked.

    Args:
        metadata: the metadata properties of the ONNX file.
        model: the bytes of the file.
        where: its path, for the error.

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
            "model",
            where,
            f"has card schema {version}, this version reads {SCHEMA_VERSION}",
            "Upgrade genai-ray.",
        )
    return ModelCard.from_json(metadata[CARD_KEY]), digest


# --- labels inside files -------------------------------------------------------------------------

#: Keys of the implicit label of GB 45438-2025, Annex E, in its order.
AIGC_KEYS = (
    "Label",
    "ContentProducer",
    "ProduceID",
    "ReservedCode1",
    "ContentPropagator",
    "PropagateID",
    "ReservedCode2",
)
_AIGC_NAMESPACE = "http://www.tc260.org.cn/ns/AIGC/1.0/"
_IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF_NAMESPACE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
#: First bytes of an iTXt body with XMP: keyword, no compression, no language (XMP, part 3).
PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
#: First bytes of an APP1 segment with XMP.
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True, kw_only=True)
class Label:
    """What an image says of its origin: DigitalSourceType, and the label of GB 45438-2025."""

    source: str
    aigc: dict[str, str] | None


def produce_id(provenance: dict[str, Any], part: str) -> str:
    """The unique number of one content: of its data set, and of its place in there."""
    return f"{provenance.get('fingerprint', '')[:16]:0<16}-{part}"


def aigc_label(producer: str, produced: str) -> str:
    """The label of GB 45438-2025 as JSON; whoever produces is also the first to propagate."""
    values = ("1", producer, produced, "", producer, produced, "")
    return json.dumps(dict(zip(AIGC_KEYS, values, strict=True)), separators=(",", ":"))


def with_label(schema: "pa.Schema", producer: str | None, produced: str) -> "pa.Schema":
    """A schema of Arrow with the label of GB 45438-2025 for the file, if there is a producer."""
    if producer is None:
        return schema
    return schema.with_metadata({**(schema.metadata or {}), "AIGC": aigc_label(producer, produced)})


def xmp_packet(producer: str | None = None, produced: str = "") -> bytes:
    """An XMP packet that marks an image as made by a trained model (IPTC Photo Metadata 2025.1).

    Args:
        producer: name or code of the provider; given, the packet carries its label, too.
        produced: the unique number of the image.
    """
    about = f'xmlns:Iptc4xmpExt="{_IPTC_NAMESPACE}" '
    about += f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"'
    end = "/>"
    if producer is not None:
        about += f' xmlns:TC260="{_AIGC_NAMESPACE}"'
        text = escape(aigc_label(producer, produced))
        end = f"><TC260:AIGC>{text}</TC260:AIGC></rdf:Description>"
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF_NAMESPACE}">'
        f'<rdf:Description rdf:about="" {about}{end}</rdf:RDF></x:xmpmeta>'
    ).encode()


def read_label(data: bytes) -> Label:
    """The label inside a PNG, JPEG or WebP file.

    Raises:
        ValueError: if there is not exactly one, or it is not as the standards want it.
    """
    packets = list(_xmp_packets(data))
    if len(packets) != 1:
        raise ValueError(f"has {len(packets)} XMP packets; one is right")
    try:
        root = ElementTree.fromstring(packets[0])
    except ElementTree.ParseError as error:
        raise ValueError(f"has an XMP packet that is no XML ({error})") from None
    name = f"{{{_IPTC_NAMESPACE}}}DigitalSourceType"
    sources = [e.attrib[name] for e in root.iter() if name in e.attrib]
    sources += [e.text or "" for e in root.iter(name)]
    if len(sources) != 1:
        raise ValueError(f"names {len(sources)} digital source types; one is right")
    labels = [e.text or "" for e in root.iter(f"{{{_AIGC_NAMESPACE}}}AIGC")]
    # Not only in the packet: a copy elsewhere (Exif, a text chunk) breaks the standard as well.
    found = max(len(labels), data.count(b"ReservedCode2"))
    if found > 1:
        raise ValueError(f"has {found} labels of GB 45438-2025; one is right")
    return Label(source=sources[0], aigc=_parse_aigc(labels[0]) if labels else None)


def _parse_aigc(text: str) -> dict[str, str]:
    pairs = json.loads(text, object_pairs_hook=tuple)
    if not isinstance(pairs, tuple) or tuple(key for key, _ in pairs) != AIGC_KEYS:
        raise ValueError(f"label has other keys than {', '.join(AIGC_KEYS)}")
    label = dict(pairs)
    if not all(isinstance(value, str) for value in label.values()):
        raise ValueError("label has values that are not strings")
    if label["Label"] not in ("1", "2", "3") or not label["ContentProducer"]:
        raise ValueError("label names no producer, or a Label other than 1, 2 and 3")
    if not label["ProduceID"]:
        raise ValueError("label has an empty ProduceID")
    return label


def _xmp_packets(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        parts, start = _png_chunks(data), (b"iTXt", PNG_XMP)
    elif data.startswith(b"\xff\xd8"):
        parts, start = _jpeg_segments(data), (b"\xe1", JPEG_XMP)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        parts, start = _riff_chunks(data), (b"XMP ", b"")
    else:
        raise ValueError("is neither a PNG nor a JPEG nor a WebP file")
    for tag, body in parts:
        if tag == start[0] and body.startswith(start[1]):
            yield body[len(start[1]) :]


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _jpeg_segments(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Marker and body of each segment before the pixels; metadata may stand nowhere else."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1 : at + 2], data[at + 4 : at + 2 + size]
        at += 2 + size
