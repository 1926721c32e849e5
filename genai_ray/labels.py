"""The labels inside files, written and read: that content is synthetic, in the terms of the standards.

Every image carries one XMP packet with the DigitalSourceType of IPTC Photo Metadata 2025.1 and, if a producer is named,
the implicit label of GB 45438-2025. A Parquet file carries both as metadata of its schema. Writers and `verify` use
this module, so that what is written is what is read back.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    import pyarrow as pa

#: IPTC DigitalSourceType of media made by a trained model (full URI, as the standard requires).
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
#: Digits of the id of a sample, in names of files and in labels.
ID_DIGITS = 12
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
    """The label of a file: its DigitalSourceType, and the label of GB 45438-2025 by key."""

    source: str
    aigc: dict[str, str] | None

    def difference(self, expected: "Label") -> str:
        """The first difference from the expected label; empty if there is none."""
        own, other = (label.aigc or {} for label in (self, expected))
        pairs = {"DigitalSourceType": (self.source, expected.source)}
        pairs |= {key: (own.get(key), other.get(key)) for key in AIGC_KEYS}
        wrong = (f"has {key} {value!r}, not {must!r}" for key, (value, must) in pairs.items() if value != must)
        return next(wrong, "")


def expected_label(producer: str | None, produced: str) -> Label:
    """The label that a writer gives to a file or image, see `xmp_packet`."""
    aigc = None if producer is None else json.loads(aigc_label(producer, produced))
    return Label(source=DIGITAL_SOURCE_TYPE, aigc=aigc)


def produce_id(provenance: Mapping[str, Any], part: str) -> str:
    """The unique id of a file or image: of its data set, and of the sample or shard in it."""
    return f"{provenance.get('fingerprint', '')[:16]:0<16}-{part}"


def aigc_label(producer: str, produced: str) -> str:
    """The label of GB 45438-2025 as JSON; the producer is also the first propagator."""
    values = ("1", producer, produced, "", producer, produced, "")
    return json.dumps(dict(zip(AIGC_KEYS, values, strict=True)), separators=(",", ":"))


def with_label(schema: "pa.Schema", producer: str | None, produced: str) -> "pa.Schema":
    """An Arrow schema with the label of GB 45438-2025 for the file, if there is a producer."""
    if producer is None:
        return schema
    return schema.with_metadata({**(schema.metadata or {}), "AIGC": aigc_label(producer, produced)})


def xmp_packet(producer: str | None = None, produced: str = "") -> bytes:
    """An XMP packet that marks an image as made by a trained model (IPTC Photo Metadata 2025.1).

    Args:
        producer: name or code of the provider; if given, the packet also carries the label of GB 45438-2025.
        produced: the unique id of the image.
    """
    about = f'xmlns:Iptc4xmpExt="{_IPTC_NAMESPACE}" '
    about += f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"'
    end = "/>"
    if producer is not None:
        about += f' xmlns:TC260="{_AIGC_NAMESPACE}"'
        label = escape(aigc_label(producer, produced))
        end = f"><TC260:AIGC>{label}</TC260:AIGC></rdf:Description>"
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF_NAMESPACE}">'
        f'<rdf:Description rdf:about="" {about}{end}</rdf:RDF></x:xmpmeta>'
    ).encode()


def read_label(data: bytes) -> Label:
    """The label inside a PNG, JPEG or WebP file.

    Raises:
        ValueError: if there is not exactly one, or it breaks a standard. The message is a predicate of the file: "has
            0 XMP packets; one is right".
    """
    packets = list(_xmp_packets(data))
    if len(packets) != 1:
        raise ValueError(f"has {len(packets)} XMP packets; one is right")
    try:
        root = ElementTree.fromstring(packets[0])
    except ElementTree.ParseError as error:
        raise ValueError(f"has an XMP packet that is not XML ({error})") from None
    name = f"{{{_IPTC_NAMESPACE}}}DigitalSourceType"
    sources = [e.attrib[name] for e in root.iter() if name in e.attrib]
    sources += [e.text or "" for e in root.iter(name)]
    if len(sources) != 1:
        raise ValueError(f"names {len(sources)} digital source types; one is right")
    labels = [e.text or "" for e in root.iter(f"{{{_AIGC_NAMESPACE}}}AIGC")]
    # A copy outside the packet (Exif, a text chunk) breaks the standard, too.
    count = max(len(labels), data.count(b"ReservedCode2"))
    if count > 1:
        raise ValueError(f"has {count} labels of GB 45438-2025; one is right")
    return Label(source=sources[0], aigc=_parse_aigc(labels[0]) if labels else None)


def read_metadata_label(metadata: Mapping[bytes, bytes] | None) -> Label:
    """The label in the schema metadata of a Parquet file.

    Raises:
        ValueError: as `read_label`.
    """
    metadata = metadata or {}
    if b"DigitalSourceType" not in metadata:
        raise ValueError("names no digital source type")
    aigc = metadata.get(b"AIGC")
    return Label(
        source=metadata[b"DigitalSourceType"].decode(), aigc=None if aigc is None else _parse_aigc(aigc.decode())
    )


def _parse_aigc(label_json: str) -> dict[str, str]:
    try:
        pairs = json.loads(label_json, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise ValueError(f"has a label that is not JSON ({error})") from None
    if not isinstance(pairs, tuple) or tuple(key for key, _ in pairs) != AIGC_KEYS:
        raise ValueError(f"has a label with other keys than {', '.join(AIGC_KEYS)}")
    label = dict(pairs)
    if not all(isinstance(value, str) for value in label.values()):
        raise ValueError("has a label with values that are not strings")
    if label["Label"] not in ("1", "2", "3") or not label["ContentProducer"]:
        raise ValueError("has a label that names no producer, or a Label other than 1, 2 and 3")
    if not label["ProduceID"]:
        raise ValueError("has a label with an empty ProduceID")
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
    """Marker and body of each segment before the pixels; metadata cannot be elsewhere."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1 : at + 2], data[at + 4 : at + 2 + size]
        at += 2 + size


def label_fault(read: Callable[[], Label], producer: str | None, produced: str) -> str:
    """What is wrong with a label that is read; empty if nothing is."""
    try:
        return read().difference(expected_label(producer, produced))
    except ValueError as error:
        return str(error)


def first_fault(
    contents: Sequence[bytes], start: int, producer: str | None, provenance: Mapping[str, Any], parsed: set[int]
) -> tuple[int, str] | None:
    """The first of the contents of samples start.. whose label is missing or wrong, and what is wrong with it.

    A content with the exact XMP packet of its id is right; those in `parsed`, and those without it, are parsed whole.
    """
    hole = "{produced}"
    template = xmp_packet(producer, hole)
    for i, content in enumerate(contents):
        produced = produce_id(provenance, f"{start + i:0{ID_DIGITS}d}")
        if i not in parsed and template.replace(hole.encode(), produced.encode()) in content:
            continue
        if fault := label_fault(functools.partial(read_label, content), producer, produced):
            return i, fault
    return None
