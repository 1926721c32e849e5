"""Hold a data set against its manifest, and against the model that made it: `verify(uri)`.

Everything is hashed again, schema and ids are read, and random shards are made again and compared,
byte for byte. What is damaged or missing can be made again too, since a shard is a pure function.
"""

import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genai_ray.dataset import manifest as manifests
from genai_ray.dataset.plan import Shard, fields_of, reopen
from genai_ray.dataset.shards import ForgetfulStore, ShardMaker
from genai_ray.errors import IncompleteError, UserError
from genai_ray.provenance import FileRecord, Manifest
from genai_ray.storage import Store

_READERS = 8  # files that are read at once


@dataclass(frozen=True)
class VerifyResult:
    """faults: shard -> what is wrong with it, of those that still are; strays: objects under data/
    that the manifest does not list, which no reader may trust; regenerated: shards that were made
    again and compared; repaired: shards that were made again and put.
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
            lines.append(f"made again: shards {_shown(self.repaired)}")
        if self.regenerated:
            lines.append(f"regenerated and compared: shards {_shown(self.regenerated)}")
        if self.strays:
            lines.append(f"not in the manifest: {len(self.strays)} objects, {self.strays[0]} …")
        lines += [f"shard {i}: {fault}" for i, fault in list(self.faults.items())[:10]]
        if self.faults:
            lines.append(f"damaged: {len(self.faults)} shards; --repair makes them again")
        else:
            lines.append("whole")
        return "\n".join(lines)


def verify(uri: str, *, regenerate: int = 0, repair: bool = False, seed: int | None = None) -> VerifyResult:
    """Check a finished data set.

    Args:
        uri: of the data set, or of its run.
        regenerate: so many random shards are made again and compared.
        repair: make again what is missing or damaged.
        seed: of the choice of shards; None: another each time.

    Raises:
        UserError: if there is no data set, or its model is not there for what has to be made.
        IncompleteError: if the data set is not finished.
    """
    store, manifest = _find(uri)
    shards = [Shard(**s) for s in manifest.shards]
    records = list(manifests.files_of(manifest))
    if len(records) != len(shards):
        raise UserError(
            "uri",
            uri,
            "holds no files: it was made with generate.sink=discard",
            "Generate with another sink.",
        )
    faults: dict[int, str] = {}
    known: set[str] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        jobs = [(store, manifest, r, s) for r, s in zip(records, shards, strict=True)]
        for index, (fault, paths) in enumerate(pool.map(lambda job: _check(*job), jobs)):
            known |= paths
            if fault:
                faults[index] = fault
    strays = [key for key in store.list("data/") if key not in known]
    if [s.start for s in shards] + [manifest.rows] != [0] + [s.stop for s in shards]:
        raise UserError(
            "uri",
            uri,
            "has a manifest whose shards do not cover every row once",
            "Delete manifest.json and run `genai-ray generate`.",
        )

    repaired, regenerated = [], []
    chooser = random.Random(secrets.randbits(64) if seed is None else seed)
    sound = [i for i in range(len(shards)) if i not in faults]
    chosen = sorted(chooser.sample(sound, min(regenerate, len(sound))))
    if chosen or (repair and faults):
        maker = ShardMaker(reopen(store, manifest.fields))
        for index in chosen:
            regenerated.append(index)
            if fault := _differs(maker, shards[index], records[index]):
                faults[index] = fault
        for index in sorted(faults) if repair else ():
            fault = _differs(maker, shards[index], records[index])
            if fault:
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


def _find(uri: str) -> tuple[Store, Manifest]:
    Store(uri).check(write=False)
    for store in (Store(uri), Store(uri).at("dataset")):
        manifest = manifests.read_manifest(store)
        if manifest is not None:
            return store, manifest
        if fields_of(store) is not None:
            raise IncompleteError(f"{store.uri} is not finished; run `genai-ray generate`")
    raise UserError(
        "uri",
        uri,
        "must be a data set or a run that has one",
        "Give <store>/<name> or <store>/<name>/dataset.",
    )


def _check(store: Store, manifest: Manifest, record: FileRecord, shard: Shard) -> tuple[str, set[str]]:
    """What is wrong with the files of a shard, empty if nothing; and the objects that belong to it.

    The objects of a damaged shard are those that its list, if it can be read, names.
    """
    paths, sink = {record.path}, manifests.sink_of(manifest)
    try:
        data = store.read(record.path)
    except FileNotFoundError:
        return f"{record.path} is missing", paths
    if FileRecord.of(record.path, record.rows, data) != record:
        return f"{record.path} is not what the manifest says: SHA-256 differs", paths
    paths |= {path for path, _, _ in sink.objects(record, data)}
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
    if manifest.columns and _columns(data) != manifest.columns:
        return f"{record.path} has other columns than the manifest", paths
    return "", paths


def _columns(data: bytes) -> dict[str, str]:
    return {f.name: str(f.type) for f in pq.read_schema(pa.BufferReader(data))}


def _shown(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (" …" if len(numbers) > 20 else "")


def _differs(maker: ShardMaker, shard: Shard, record: FileRecord) -> str:
    """How a shard that is made again differs from its record; empty if it does not."""
    (again,) = maker.files(shard, ForgetfulStore()).files
    if FileRecord(**again) == record:
        return ""
    return (
        f"made again it has other bytes than {record.path}: another processor type or other "
        "versions than in the manifest, or a model or writer that is not deterministic"
    )
