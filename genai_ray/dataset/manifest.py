"""What is there of a data set in its store: its values, receipts, manifest and files.

_conditions.parquet, _fields.json   with which values it is made; before anything else
data/...                            the files of a shard
_receipts/000000.json               after the files of its shard, never before
manifest.json                       once, last
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from genai_ray import modalities
from genai_ray.dataset.plan import Plan
from genai_ray.errors import UserError
from genai_ray.modality import Read, Rows, Sink
from genai_ray.provenance import FileRecord, Manifest
from genai_ray.runs import versions
from genai_ray.storage import Store

MANIFEST = "manifest.json"
_READERS = 16  # receipts that are read at once


def receipts(made: Plan) -> dict[int, bytes]:
    """Receipts of this plan by shard, each as JSON: less than half a kilobyte, where an object
    would take several.
    """
    found: dict[int, bytes] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for text in pool.map(made.store.read, made.store.list("_receipts/")):
            receipt = json.loads(text)
            if receipt["fingerprint"] == made.fingerprint:
                found[receipt["index"]] = text
    return found


def read_manifest(store: Store) -> Manifest | None:
    """The manifest of a data set; None while it is not complete."""
    try:
        return Manifest.from_json(store.read(MANIFEST))
    except FileNotFoundError:
        return None


def write_manifest(made: Plan, found: dict[int, bytes]) -> tuple[int, int]:
    """Put the manifest of a data set whose shards are all there; how many files and bytes it has.

    It lists every file, so it is put together from texts: as objects a million shards would take
    gigabytes.
    """
    files, shards, size, attempts = [], [], 0, 0
    for receipt in (json.loads(found[i]) for i in sorted(found)):
        size += sum(f["bytes"] for f in receipt["files"])
        attempts += receipt.get("attempts", 0)
        files += [_text(f) for f in receipt["files"]]
        shards.append(_text({k: receipt[k] for k in ("index", "start", "stop")}))
    manifest = Manifest(
        fingerprint=made.fingerprint,
        fields=made.fields,
        model=made.digest,
        card=asdict(made.card),
        rows=made.spec.samples,
        bytes=size,
        files=[],
        shards=[],
        columns={f.name: str(f.type) for f in made.samples().schema} if made.sink.columns else {},
        accept_rate=made.spec.samples / max(attempts, made.spec.samples),
        versions=versions(),
    )
    text = manifest.to_json()
    for name, parts in (("files", files), ("shards", shards)):
        before, after = text.split(f'"{name}":[]')
        text = f'{before}"{name}":[{",".join(parts)}]{after}'
    made.store.put(MANIFEST, text.encode())
    return len(files), size


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def files_of(manifest: Manifest) -> Iterable[FileRecord]:
    return (FileRecord(**f) for f in manifest.files)


def sink_of(manifest: Manifest) -> Sink[Rows]:
    """The sink that wrote a data set."""
    kind = modalities.modality(manifest.card["codec"]["modality"])
    return kind.sinks[manifest.fields["generate.sink"]]()


def shipped(store: Store, manifest: Manifest) -> Iterator[Read]:
    """What each file of a data set holds, in order.

    Raises:
        UserError: if a file is missing or is not the one that the manifest names.
    """
    sink = sink_of(manifest)
    for record in files_of(manifest):
        try:
            data = store.read(record.path)
            if FileRecord.of(record.path, record.rows, data) != record:
                raise ValueError("SHA-256 differs")
            yield sink.read(record, data, store)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                "dataset",
                f"{store.uri}/{record.path}",
                f"is missing or not what the manifest says ({error})",
                "Make it again with `genai-ray verify --repair`.",
            ) from None
