"""Compare a data set with its manifest and with the model that made it: `verify(uri)`.

Every file is hashed, its schema, ids and labels are read, and random shards are regenerated and compared byte for byte.
What is damaged or missing can be repaired, since a shard is a pure function.

Labels (promise 7): the schema of every Parquet file must say that it is synthetic, and which model and fingerprint made
it. Every image file must hold the XMP packet of its id. The labels of at most 256 random images of a shard, and of each
image without that exact packet, are parsed by the rules of the standards.
"""

import json
import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genai_ray.dataset import manifest as manifests
from genai_ray.dataset.plan import Shard, read_fields, reopen
from genai_ray.dataset.shards import ForgetfulStore, ShardMaker
from genai_ray.errors import IncompleteError, UserError
from genai_ray.labels import first_fault, label_fault, produce_id, read_metadata_label
from genai_ray.provenance import FileRecord, Manifest, ShardReceipt
from genai_ray.storage import Store

_READERS = 8  # files that are read at once
_PARSED = 256  # images of a shard whose labels are parsed: 40 us each


@dataclass(frozen=True)
class VerifyResult:
    """faults: shard -> what is still wrong with it. strays: objects under data/ that the manifest does not list, which
    no reader may trust. regenerated: shards that were made again and compared; repaired: and put.
    """

    uri: str
    rows: int
    files: int
    bytes: int
    faults: dict[int, str]
    strays: list[str]
    regenerated: list[int]
    repaired: list[int]

    @property
    def whole(self) -> bool:
        return not self.faults

    @property
    def summary(self) -> str:
        lines = [f"{self.uri}: {self.rows:,} rows in {self.files:,} files, {self.bytes:,} bytes"]
        if self.repaired:
            lines.append(f"repaired: shards {_shown(self.repaired)}")
        if self.regenerated:
            lines.append(f"regenerated and compared: shards {_shown(self.regenerated)}")
        if self.strays:
            lines.append(f"not in the manifest: {len(self.strays)} objects, {self.strays[0]} …")
        lines += [f"shard {i}: {fault}" for i, fault in list(self.faults.items())[:10]]
        damaged = f"damaged: {len(self.faults)} shards; --repair regenerates them"
        return "\n".join([*lines, damaged if self.faults else "whole"])


def verify(uri: str, *, regenerate: int = 0, repair: bool = False, seed: int | None = None) -> VerifyResult:
    """Check a finished data set.

    Args:
        uri: of the data set, or of its run.
        regenerate: how many random shards are made again and compared.
        repair: regenerate what is missing or damaged.
        seed: of the choice of shards and images; None: a random one.

    Raises:
        UserError: if there is no data set, or no model to regenerate shards with.
        IncompleteError: if the data set is not finished.
    """
    store, manifest = _find(uri)
    shards, records = _contents(uri, manifest)
    seed = secrets.randbits(64) if seed is None else seed
    faults: dict[int, str] = {}
    known: set[str] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        checks = pool.map(lambda *job: _check(store, manifest, seed, *job), records, shards)
        for index, (fault, paths) in enumerate(checks):
            known |= paths
            if fault:
                faults[index] = fault
    strays = [key for key in store.list("data/") if key not in known]

    repaired = []
    sound = [i for i in range(len(shards)) if i not in faults]
    regenerated = sorted(random.Random(seed).sample(sound, min(regenerate, len(sound))))
    if regenerated or (repair and faults):
        maker = ShardMaker(reopen(store, manifest.fields))
        for index in regenerated:
            if fault := _differs(maker, shards[index], records[index]):
                faults[index] = fault
        for index in sorted(faults) if repair else ():
            if fault := _differs(maker, shards[index], records[index]):
                faults[index] += f"; not repaired: {fault}"
                continue
            maker.make(shards[index])
            repaired.append(index)
            del faults[index]
    return VerifyResult(
        uri=store.uri,
        rows=manifest.rows,
        files=len(records),
        bytes=manifest.bytes,
        faults=faults,
        strays=strays,
        regenerated=regenerated,
        repaired=repaired,
    )


def _contents(uri: str, manifest: Manifest) -> tuple[list[Shard], list[FileRecord]]:
    """The shards of a data set and the file of each.

    Raises:
        UserError: if there are no files, or the shards do not cover the samples.
    """
    shards = [Shard(**s) for s in manifest.shards]
    records = list(manifests.files_of(manifest))
    if len(records) != len(shards):
        rule = "holds no files: it was made with generate.sink=discard"
        raise UserError("uri", uri, rule, "Generate with another sink.")
    if [s.start for s in shards] + [manifest.rows] != [0] + [s.stop for s in shards]:
        rule = "has a manifest whose shards do not cover every row once"
        raise UserError("uri", uri, rule, "Delete manifest.json and run `genai-ray generate`.")
    return shards, records


def _find(uri: str) -> tuple[Store, Manifest]:
    Store(uri, "uri").check(write=False)
    for store in (Store(uri, "uri"), Store(uri, "uri").at("dataset")):
        manifest = manifests.read_manifest(store)
        if manifest is not None:
            return store, manifest
        if read_fields(store) is not None:
            raise IncompleteError(f"{store.uri} is not finished; run `genai-ray generate`")
    raise UserError(
        "uri", uri, "must be a data set or a run that has one", "Give <store>/<name> or <store>/<name>/dataset."
    )


def _check(store: Store, manifest: Manifest, seed: int, record: FileRecord, shard: Shard) -> tuple[str, set[str]]:
    """What is wrong with the files of a shard, empty if nothing; and the paths of the objects that belong to it, as far
    as they can be read.
    """
    sink = manifests.sink_of(manifest)
    try:
        data = store.read(record.path)
    except FileNotFoundError:
        return f"{record.path} is missing", {record.path}
    if FileRecord.of(record.path, record.rows, data) != record:
        return f"{record.path} is not the file of the manifest: SHA-256 differs", {record.path}
    listed = [path for path, _, _ in sink.objects(record, data)]
    paths = {record.path, *listed}
    try:
        file = sink.read(record, data, store)
    except (ValueError, FileNotFoundError) as error:
        return f"{record.path}: {error}", paths
    if file.count != shard.stop - shard.start:
        return f"{record.path} has {file.count} rows", paths
    if file.ids is None:
        return "", paths
    if not np.array_equal(file.ids, np.arange(shard.start, shard.stop)):
        return f"{record.path} does not hold samples {shard.start}..{shard.stop - 1}", paths
    if manifest.columns and {f.name: str(f.type) for f in _schema(data)} != manifest.columns:
        return f"{record.path} has other columns than the manifest", paths
    fault = _label_fault(manifest, shard, data) if record.path.endswith(".parquet") else ""
    fault = fault and f"{record.path} {fault}"
    if not fault:
        chosen = random.Random(f"{seed} {shard.index}").sample(range(file.count), min(_PARSED, file.count))
        about = {"fingerprint": manifest.fingerprint}
        unlabelled = first_fault(file.labelled, shard.start, _producer(manifest), about, set(chosen))
        if unlabelled is not None:
            at, difference = unlabelled
            name = listed[at] if listed else record.path
            fault = f"{name}: sample {shard.start + at} {difference}"
    if fault:
        fault += f". Delete manifest.json and {ShardReceipt.key(shard.index)} and run `genai-ray generate`"
    return fault, paths


def _label_fault(manifest: Manifest, shard: Shard, data: bytes) -> str:
    """What is wrong with the label in the metadata of a Parquet file, or with the origin it names."""
    metadata = _schema(data).metadata or {}
    produced = produce_id({"fingerprint": manifest.fingerprint}, f"part-{shard.index:06d}")
    fault = label_fault(lambda: read_metadata_label(metadata), _producer(manifest), produced)
    origin = json.loads(metadata.get(b"genai_ray", b"{}"))
    expected = {"model": manifest.model, "fingerprint": manifest.fingerprint, **vars(shard)}
    del expected["index"]
    wrong = (f"has {k} {origin.get(k)!r}, not {v!r}" for k, v in expected.items() if origin.get(k) != v)
    return fault or next(wrong, "")


def _producer(manifest: Manifest) -> str | None:
    return manifest.fields.get("provenance.producer")


def _schema(data: bytes) -> pa.Schema:
    return pq.read_schema(pa.BufferReader(data))


def _shown(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:20])) + (" …" if len(indices) > 20 else "")


def _differs(maker: ShardMaker, shard: Shard, record: FileRecord) -> str:
    """How a regenerated shard differs from its record; empty if it does not."""
    (regenerated,) = maker.files(shard, ForgetfulStore()).files
    if FileRecord(**regenerated) == record:
        return ""
    return (
        f"regenerated, it has other bytes than {record.path}: another processor type or other versions than in the "
        "manifest, a model or writer that is not deterministic, or a file that was altered together with the manifest"
    )
