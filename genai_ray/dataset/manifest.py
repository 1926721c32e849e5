"""What a data set consists of in its store: fields, receipts, manifest and files.

_conditions.parquet, _fields.json   the values with which it is made; before anything else
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


def read_receipts(plan: Plan) -> dict[int, bytes]:
    """Receipts of this plan by shard; kept as JSON of less than half a kilobyte, as an object would take several."""
    receipts: dict[int, bytes] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for document in pool.map(plan.store.read, plan.store.list("_receipts/")):
            receipt = json.loads(document)
            if receipt["fingerprint"] == plan.fingerprint:
                receipts[receipt["index"]] = document
    return receipts


def read_manifest(store: Store) -> Manifest | None:
    """The manifest of a data set; None while it is not complete."""
    try:
        return Manifest.from_json(store.read(MANIFEST))
    except FileNotFoundError:
        return None


def write_manifest(plan: Plan, receipts: dict[int, bytes]) -> tuple[int, int]:
    """Put the manifest of a data set whose receipts are complete; how many files and bytes it has.

    It lists every file, so it is joined from JSON strings: as objects, a million shards would take gigabytes.
    """
    files, shards, size, attempts = [], [], 0, 0
    for receipt in (json.loads(receipts[i]) for i in sorted(receipts)):
        size += sum(f["bytes"] for f in receipt["files"])
        attempts += receipt.get("attempts", 0)
        files += [_compact(f) for f in receipt["files"]]
        shards.append(_compact({k: receipt[k] for k in ("index", "start", "stop")}))
    manifest = Manifest(
        fingerprint=plan.fingerprint,
        fields=plan.fields,
        model=plan.digest,
        card=asdict(plan.card),
        rows=plan.spec.samples,
        bytes=size,
        files=[],
        shards=[],
        columns={f.name: str(f.type) for f in plan.samples().schema} if plan.sink.columns else {},
        accept_rate=plan.spec.samples / max(attempts, plan.spec.samples),
        versions=versions(),
    )
    document = manifest.to_json()
    for name, parts in (("files", files), ("shards", shards)):
        before, after = document.split(f'"{name}":[]')
        document = f'{before}"{name}":[{",".join(parts)}]{after}'
    plan.store.put(MANIFEST, document.encode())
    return len(files), size


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def files_of(manifest: Manifest) -> Iterable[FileRecord]:
    return (FileRecord(**f) for f in manifest.files)


def sink_of(manifest: Manifest) -> Sink[Rows]:
    """The sink that wrote a data set."""
    kind = modalities.modality(manifest.card["codec"]["modality"])
    return kind.sinks[manifest.fields["generate.sink"]]()


def read_files(store: Store, manifest: Manifest) -> Iterator[Read]:
    """What each file of a data set holds, in order.

    Raises:
        UserError: if a file is missing or differs from its record in the manifest.
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
                f"is missing or differs from the manifest ({error})",
                "Make it again with `genai-ray verify --repair`.",
            ) from None
