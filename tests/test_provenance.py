"""What is written beside the data survives JSON, and a model file that was touched is refused."""

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray.errors import UserError
from genai_ray.provenance import (
    BLANK,
    CARD_KEY,
    DIGEST_KEY,
    SCHEMA_VERSION,
    FileRecord,
    Manifest,
    ModelCard,
    ShardReceipt,
    open_card,
    seal,
)

CARD = ModelCard(
    name="run",
    preset="dcgan",
    family="gan",
    latent=16,
    conditional=True,
    codec={"modality": "image", "size": 8, "channels": 1, "classes": ["0", "ünïcode"]},
    training={"samples": 1280, "fingerprint": "ab"},
    versions={"torch": "2"},
)
RECORD = FileRecord.of("data/part-000000.parquet", 3, b"abc")
RECEIPT = ShardReceipt(index=2, start=20, stop=30, fingerprint="ab", files=[dataclasses.asdict(RECORD)])
MANIFEST = Manifest(
    fingerprint="ab",
    fields={"seed": 0, "generate.classes": None},
    model="cd",
    card=dataclasses.asdict(CARD),
    rows=3,
    bytes=3,
    files=[dataclasses.asdict(RECORD)],
    shards=[{"index": 0, "start": 0, "stop": 3}],
    columns={"id": "int64"},
    versions={},
)
VALUES = [CARD, RECORD, RECEIPT, MANIFEST]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
class TestJson:
    def test_round_trip(self, value: Any):
        kind = type(value)
        assert kind.from_json(value.to_json()) == value
        assert kind.from_json(value.to_json().encode()) == value

    def test_text_is_canonical(self, value: Any):
        values = json.loads(value.to_json())
        backwards = dict(reversed(values.items()))
        assert type(value).from_json(json.dumps(backwards, indent=1)).to_json() == value.to_json()

    def test_fields_of_a_newer_minor_version_are_ignored(self, value: Any):
        newer = json.loads(value.to_json()) | {"new_field": [1, {"a": 2}]}
        assert type(value).from_json(json.dumps(newer)) == value

    def test_values_are_frozen(self, value: Any):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "changed")


@settings(deadline=None)
@given(st.text(), st.integers(), st.dictionaries(st.text(), st.text() | st.none()))
def test_any_card_survives_json(name: str, latent: int, training: dict[str, Any]):
    card = dataclasses.replace(CARD, name=name, latent=latent, training=training)
    assert ModelCard.from_json(card.to_json()) == card


def test_card_and_manifest_say_that_the_content_is_synthetic():
    for value in (CARD, MANIFEST):
        text = json.loads(value.to_json())
        assert text["synthetic"] == ("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia")
        assert text["schema_version"] == SCHEMA_VERSION


def test_a_file_record_is_of_the_bytes():
    assert RECORD.bytes == 3
    # FIPS 180-2, appendix B.1.
    assert RECORD.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_receipts_sort_as_their_shards():
    keys = [ShardReceipt.key(i) for i in (0, 9, 10, 999_999)]
    assert keys == sorted(keys)
    assert keys[0] == "_receipts/000000.json"


# --- the model file ------------------------------------------------------------------------------


def sealed(card: ModelCard = CARD) -> tuple[bytes, dict[str, str]]:
    """Stand-in bytes of a model file that carries its card and digest, and its metadata."""
    text = card.to_json()
    model, digest = seal(b"weights\x00\xff|" + text.encode() + b"|" + BLANK.encode() + b"|more")
    return model, {CARD_KEY: text, DIGEST_KEY: digest}


def test_a_sealed_file_opens():
    model, metadata = sealed()
    card, digest = open_card(metadata, model, where="m.onnx")
    assert card == CARD
    assert digest == metadata[DIGEST_KEY]
    assert digest.encode() in model
    blank = model.replace(digest.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == digest


def test_sealing_changes_only_the_blank():
    blank = b"a" + BLANK.encode() + b"b"
    model, digest = seal(blank)
    assert model == b"a" + digest.encode() + b"b"


def test_any_flipped_byte_is_refused():
    model, metadata = sealed()
    for position in range(len(model)):
        flipped = bytearray(model)
        flipped[position] ^= 1
        with pytest.raises(UserError, match="altered") as caught:
            open_card(metadata, bytes(flipped), where="m.onnx")
        assert caught.value.value == "m.onnx"


@pytest.mark.parametrize("change", [lambda m: m[:-1], lambda m: m + b"\0", lambda m: b""])
def test_another_length_is_refused(change: Any):
    model, metadata = sealed()
    with pytest.raises(UserError, match="altered"):
        open_card(metadata, change(model), where="m.onnx")


@pytest.mark.parametrize("missing", [CARD_KEY, DIGEST_KEY])
def test_a_file_without_a_card_is_refused(missing: str):
    model, metadata = sealed()
    del metadata[missing]
    with pytest.raises(UserError, match="genai_ray card") as caught:
        open_card(metadata, model, where="m.onnx")
    assert "genai-ray export" in caught.value.remedy


def test_a_newer_schema_is_refused():
    model, metadata = sealed(dataclasses.replace(CARD, schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(UserError, match=f"schema {SCHEMA_VERSION + 1}") as caught:
        open_card(metadata, model, where="m.onnx")
    assert "Upgrade" in caught.value.remedy
