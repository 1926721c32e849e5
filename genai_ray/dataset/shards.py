"""Shards of a plan: how one is made, and how many rows it has."""

from dataclasses import asdict
from typing import Any

from genai_ray.dataset.plan import Plan, Shard, fields_of
from genai_ray.modality import ShardOf
from genai_ray.provenance import ShardReceipt
from genai_ray.storage import Store

_PROBED = 256  # samples that tell how many rows make a shard of so many bytes


class ShardMaker:
    """Makes shards of a plan; keeps one session of the model."""

    def __init__(self, made: Plan):
        self.plan, self.samples, self._sink = made, made.samples(), made.sink

    def make(self, shard: Shard) -> ShardReceipt:
        """Put the files of a shard, and then its receipt."""
        store = self.plan.store
        receipt = self.files(shard, store)
        store.put(ShardReceipt.key(shard.index), receipt.to_json().encode())
        return receipt

    def files(self, shard: Shard, store: Store) -> ShardReceipt:
        """Put the files of a shard into any store; what its receipt says."""
        made = self.plan
        part = ShardOf(
            index=shard.index,
            start=shard.start,
            stop=shard.stop,
            provenance=_provenance(made, shard),
            producer=made.producer,
        )
        rows = self.samples.rows(part)
        files = self._sink.write(rows, store)
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


def with_settled_rows(made: Plan) -> Plan:
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
