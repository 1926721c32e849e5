"""A data set in its store: plan, shards, receipts, manifest. What is written, where and when.

_conditions.parquet, _fields.json   with which values it is made; before anything else
data/...                            the files of a shard
_receipts/000000.json               after the files of its shard, never before
manifest.json                       once, last
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from genai_ray import config, sinks
from genai_ray.config import GenerateSpec, Spec
from genai_ray.errors import IncompleteError, UserError
from genai_ray.provenance import MODEL_KEY, FileRecord, Manifest, ModelCard, ShardReceipt
from genai_ray.runs import refuse_difference, versions
from genai_ray.sampler import read_model
from genai_ray.samples import SAMPLES, Samples
from genai_ray.samples.classes import read_conditions
from genai_ray.storage import Store

MANIFEST = "manifest.json"
_FIELDS = "_fields.json"
_CONDITIONS = "_conditions.parquet"
_READERS = 16  # receipts that are read at once
_PROBED = 256  # samples that tell how many rows make a shard of so many bytes


@dataclass(frozen=True)
class Shard:
    """Samples start..stop of a data set: the unit of work, of retry and of resume."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """All that the shards of a data set depend on.

    spec: with shard_rows settled. conditions: the kept table, as Parquet.
    """

    store: Store
    spec: GenerateSpec
    model: bytes
    card: ModelCard
    digest: str
    seed: int
    producer: str | None
    conditions: bytes | None
    fields: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return config.fingerprint(self.fields)

    @property
    def shard_count(self) -> int:
        return -(-self.spec.samples // self.spec.shard_rows)

    def shard(self, index: int) -> Shard:
        rows, total = self.spec.shard_rows, self.spec.samples
        return Shard(index, index * rows, min((index + 1) * rows, total))

    @property
    def modality(self) -> str:
        return self.card.codec["modality"]

    def samples(self) -> Samples:
        return SAMPLES[self.modality](self.model, self.card, self.spec, self.seed, self.conditions)


def plan(spec: Spec) -> Plan:
    """Read the model of a run and check that the data set can be made; nothing is written.

    Raises:
        UserError: for a model file that is missing, not ours or altered, for bad classes or
            conditions, and for a catalog that cannot be used.
        IncompleteError: if the run has no model yet.
    """
    store = Store(spec.run_uri).at(spec.generate.into)
    model, card, digest = _model_of(store)
    fields = config.fingerprint_fields(spec, "generate") | {"model": digest}
    conditions = None
    if isinstance(spec.generate.conditions, str):
        conditions = read_conditions(spec.generate, card)
        fields["generate.conditions"] = hashlib.sha256(conditions).hexdigest()
    made = Plan(
        store=store,
        spec=spec.generate,
        model=model,
        card=card,
        digest=digest,
        seed=config.generation_seed(spec),
        producer=spec.provenance.producer,
        conditions=conditions,
        fields=fields,
    )
    samples = made.samples()
    if spec.generate.sink == "iceberg":
        assert spec.generate.table is not None
        sinks.check_iceberg(store.uri, spec.generate.catalog, spec.generate.table, samples.schema)
    if fields_of(store) is None:
        samples.probe()
    return _with_settled_rows(made)


def reopen(store: Store, fields: dict[str, Any], technical: GenerateSpec | None = None) -> Plan:
    """The plan of a data set by the values it was begun with; no spec is needed.

    Args:
        store: of the data set; the model lies beside it.
        fields: see `fields_of`.
        technical: where batch, device and other fields that change no result are taken from.

    Raises:
        UserError: if the model beside it is not the one that it was begun with.
    """
    model, card, digest = _model_of(store)
    if digest != fields["model"]:
        raise UserError(
            "model",
            f"{run_of(store).uri}/{MODEL_KEY}",
            f"is not the model that this data set was made from ({fields['model'][:16]}…)",
            "Put that model back.",
        )
    values = {k.removeprefix("generate."): v for k, v in fields.items() if "generate." in k}
    kept = isinstance(values["conditions"], str)  # the digest of a table that lies beside
    if kept:
        del values["conditions"]
    outside = {} if technical is None else technical.model_dump(exclude=set(values))
    return Plan(
        store=store,
        spec=GenerateSpec.model_validate({**outside, "conditions": None, **values}),
        model=model,
        card=card,
        digest=digest,
        seed=fields["seed"],
        producer=fields["provenance.producer"],
        conditions=store.read(_CONDITIONS) if kept else None,
        fields=fields,
    )


def run_of(store: Store) -> Store:
    """The run that a data set belongs to."""
    return Store(store.uri.rpartition("/")[0])


def _model_of(store: Store) -> tuple[bytes, ModelCard, str]:
    run = run_of(store)
    try:
        model = run.read(MODEL_KEY)
    except FileNotFoundError:
        raise IncompleteError(
            f"{run.uri} has no model; run `genai-ray train` and `genai-ray export` first"
        ) from None
    return model, *read_model(model, where=f"{run.uri}/{MODEL_KEY}")


def _with_settled_rows(made: Plan) -> Plan:
    """The plan with as many rows in a shard as its bytes ask for, measured on the first samples."""
    wanted = made.spec.shard_bytes
    if wanted is None:
        return made
    begun = fields_of(made.store)
    if begun is not None and begun.get("generate.shard_bytes") == wanted:
        # On another processor a file may have a byte more, and the number must not change.
        rows = begun["generate.shard_rows"]
    else:
        count = min(_PROBED, made.spec.samples)
        forgetful = ForgetfulStore()
        ShardMaker(made).files(Shard(0, 0, count), forgetful)
        rows = max(1, wanted * count // max(1, forgetful.bytes))
    spec = made.spec.model_copy(update={"shard_rows": rows})
    fields = made.fields | {"generate.shard_rows": rows}
    return Plan(**{**vars(made), "spec": spec, "fields": fields})


# --- shards --------------------------------------------------------------------------------------


class ShardMaker:
    """Makes shards of a plan; keeps one session of the model."""

    def __init__(self, made: Plan):
        self.plan, self.samples = made, made.samples()

    def make(self, shard: Shard) -> ShardReceipt:
        """Put the files of a shard, and then its receipt."""
        store = self.plan.store
        receipt = self.files(shard, store)
        store.put(ShardReceipt.key(shard.index), receipt.to_json().encode())
        return receipt

    def files(self, shard: Shard, store: Store) -> ShardReceipt:
        """Put the files of a shard into any store; what its receipt says."""
        made = self.plan
        rows = self.samples.rows(
            shard.index, shard.start, shard.stop, _provenance(made, shard), made.producer
        )
        files = sinks.SINKS[made.modality][made.spec.sink](rows, store)
        return ShardReceipt(
            index=shard.index,
            start=shard.start,
            stop=shard.stop,
            fingerprint=made.fingerprint,
            files=[asdict(f) for f in files],
            attempts=rows.attempts,
        )


class ForgetfulStore(Store):
    """Keeps nothing of what is put, and counts its bytes."""

    def __init__(self) -> None:
        super().__init__("/dev/null")
        self.bytes = 0

    def put(self, key: str, data: bytes) -> None:
        self.bytes += len(data)


def _provenance(made: Plan, shard: Shard) -> dict[str, Any]:
    return {
        "generator": made.card.name,
        "model": made.digest,
        "seed": made.seed,
        "fingerprint": made.fingerprint,
        "start": shard.start,
        "stop": shard.stop,
        "training": made.card.training,
        "genai_ray": made.card.versions.get("genai-ray", ""),
    }


# --- what is there -------------------------------------------------------------------------------


def fields_of(store: Store) -> dict[str, Any] | None:
    """The values that a data set was begun with; None if it was not."""
    try:
        return json.loads(store.read(_FIELDS))
    except FileNotFoundError:
        return None


def refuse_another(made: Plan) -> None:
    """Raises:
    UserError: if the data set there was begun with other values, listing each.
    """
    there = fields_of(made.store)
    if there is not None:
        refuse_difference(there, made.fields, made.store.uri)


def claim(made: Plan) -> None:
    """Say with which values the data set is made, before anything else of it is written."""
    if made.conditions is not None:
        made.store.put(_CONDITIONS, made.conditions)
    fields = json.dumps(made.fields, sort_keys=True).encode()
    if not made.store.put_if_absent(_FIELDS, fields):
        refuse_another(made)  # another driver was faster


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
    parquet = made.spec.sink in ("parquet", "iceberg")
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
        columns={f.name: str(f.type) for f in made.samples().schema} if parquet else {},
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


def shipped(store: Store, manifest: Manifest) -> Iterator[sinks.Read]:
    """What each file of a data set holds, in order.

    Raises:
        UserError: if a file is missing or is not the one that the manifest names.
    """
    for record in files_of(manifest):
        try:
            data = store.read(record.path)
            if FileRecord.of(record.path, record.rows, data) != record:
                raise ValueError("SHA-256 differs")
            yield sinks.read(record, data, store)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                "dataset",
                f"{store.uri}/{record.path}",
                f"is missing or not what the manifest says ({error})",
                "Make it again with `genai-ray verify --repair`.",
            ) from None
