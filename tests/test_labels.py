"""What a file says of its origin is read back as it was written, and what breaks a standard is found."""

import io
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genai_ray.labels import (
    AIGC_KEYS,
    DIGITAL_SOURCE_TYPE,
    aigc_label,
    expected_label,
    produce_id,
    read_label,
    read_metadata_label,
    xmp_packet,
)


def test_the_xmp_packet_is_rdf_that_holds_the_source_type():
    (description,) = ElementTree.fromstring(xmp_packet()).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert description.attrib[name] == DIGITAL_SOURCE_TYPE


def picture(kind: str, packet: bytes | None, **options: Any) -> bytes:
    """A file that Pillow wrote, with a packet that Pillow put into it."""
    file = io.BytesIO()
    if kind == "PNG" and packet is not None:
        info = options.setdefault("pnginfo", PngInfo())
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
    elif packet is not None:
        options["xmp"] = packet
    Image.new("RGB", (9, 7), "red").save(file, kind, **options)
    return file.getvalue()


KINDS = pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])


@KINDS
def test_a_label_that_pillow_wrote_is_read(kind: str):
    label = read_label(picture(kind, xmp_packet("ACME<&>", "ab-1")))
    assert label.aigc is not None
    assert label.source == DIGITAL_SOURCE_TYPE
    assert label.aigc == {
        "Label": "1",
        "ContentProducer": "ACME<&>",
        "ProduceID": "ab-1",
        "ReservedCode1": "",
        "ContentPropagator": "ACME<&>",
        "PropagateID": "ab-1",
        "ReservedCode2": "",
    }
    assert tuple(label.aigc) == AIGC_KEYS
    assert read_label(picture(kind, xmp_packet())).aigc is None


@KINDS
def test_no_packet_is_reported(kind: str):
    with pytest.raises(ValueError, match="has 0 XMP packets"):
        read_label(picture(kind, None))


def test_what_is_no_image_has_no_label():
    with pytest.raises(ValueError, match="neither a PNG nor"):
        read_label(b"GIF89a")


def test_a_second_packet_is_reported():
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp_packet().decode())
    with pytest.raises(ValueError, match="has 2 XMP packets"):
        read_label(picture("PNG", xmp_packet(), pnginfo=info))


def test_a_second_label_elsewhere_in_the_file_is_reported():
    info = PngInfo()
    info.add_text("AIGC", json.dumps({"AIGC": json.loads(aigc_label("ACME", "1"))}))
    with pytest.raises(ValueError, match="has 2 labels of GB 45438"):
        read_label(picture("PNG", xmp_packet("ACME", "1"), pnginfo=info))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"Label": "4"}, "a Label other than"),
        ({"Label": 1}, "not strings"),
        ({"ContentProducer": ""}, "names no producer"),
        ({"ProduceID": ""}, "empty ProduceID"),
        ({"Extra": "1"}, "other keys"),
    ],
)
def test_a_label_that_breaks_the_standard_is_reported(change: dict[str, Any], finding: str):
    right = aigc_label("ACME", "7")
    wrong = json.dumps(json.loads(right) | change, separators=(",", ":"))
    packet = xmp_packet("ACME", "7").replace(right.encode(), wrong.encode())
    with pytest.raises(ValueError, match=finding):
        read_label(picture("JPEG", packet))


def test_keys_in_another_order_are_reported():
    right = aigc_label("ACME", "7")
    turned = json.dumps(dict(reversed(json.loads(right).items())))
    packet = xmp_packet("ACME", "7").replace(right.encode(), turned.encode())
    with pytest.raises(ValueError, match="other keys"):
        read_label(picture("WEBP", packet))


@settings(deadline=None)
@given(st.from_regex(r"[!#-\[\]-~]{1,60}", fullmatch=True))
def test_any_producer_survives(producer: str):
    label = read_label(picture("PNG", xmp_packet(producer, "ab-1"))).aigc
    assert label is not None
    assert (label["ContentProducer"], label["ContentPropagator"]) == (producer, producer)
    # Characters that the standard allows: no blank, no quote, no backslash.
    assert all(re.fullmatch(r"[!#-\[\]-~]*", value) for value in label.values())


def test_numbers_are_of_the_data_set_and_the_sample():
    assert produce_id({"fingerprint": "0123456789abcdef99"}, "7") == "0123456789abcdef-7"
    assert produce_id({"fingerprint": "ab"}, "7") == "ab00000000000000-7"
    assert produce_id({}, "7") == "0000000000000000-7"


# --- metadata of Parquet files -------------------------------------------------------------------


def test_the_label_of_a_schema_is_read():
    metadata = {b"DigitalSourceType": DIGITAL_SOURCE_TYPE.encode(), b"AIGC": aigc_label("ACME", "7").encode()}
    assert read_metadata_label(metadata) == expected_label("ACME", "7")
    del metadata[b"AIGC"]
    assert read_metadata_label(metadata) == expected_label(None, "7")


@pytest.mark.parametrize("metadata", [None, {}, {b"AIGC": aigc_label("ACME", "7").encode()}])
def test_a_schema_without_a_source_type_is_reported(metadata: dict[bytes, bytes] | None):
    with pytest.raises(ValueError, match="names no digital source type"):
        read_metadata_label(metadata)


def test_what_is_no_json_is_no_label():
    with pytest.raises(ValueError, match="not JSON"):
        read_metadata_label({b"DigitalSourceType": b"x", b"AIGC": b"{"})


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (expected_label("ACME", "7"), ""),
        (expected_label("ACME", "8"), "has ProduceID '8', not '7'"),
        (expected_label("OTHER", "7"), "has ContentProducer 'OTHER', not 'ACME'"),
        (expected_label(None, "7"), "has Label None, not '1'"),
    ],
)
def test_a_difference_names_the_key(other: Any, difference: str):
    assert other.difference(expected_label("ACME", "7")) == difference
