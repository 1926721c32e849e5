"""Shards of a plan: how one is made, and how many rows it has."""

from dataclasses import asdict, replace
from typing import Any

from genai_ray.dataset.plan import Plan, Shard, read_fields
from genai_ray.modality import ShardOf
from genai_ray.provenance import ShardReceipt
from genai_ray.storage import Store

_PROBED = 256  # samples on which the bytes of a row are measured


class ShardMaker:
    """Makes shards of a plan; keeps one session of the model."""

    def __init__(self, plan: Plan):
        self.plan, self.samples, self._sink = plan, plan.samples(), plan.sink

    def make(self, shard: Shard) -> ShardReceipt:
        """Put the files of a shard, and then its receipt."""
        store = self.plan.store
        receipt = self.files(shard, store)
        store.put(ShardReceipt.key(shard.index), receipt.to_json().encode())
        return receipt

    def files(self, shard: Shard, store: Store) -> ShardReceipt:
        """Put the files of a shard into any store; the receipt is returned, not put."""
        plan, span = self.plan, vars(shard)
        rows = self.samples.rows(ShardOf(**span, provenance=_provenance(plan, shard), producer=plan.producer))
        files = [asdict(record) for record in self._sink.write(rows, store)]
        return ShardReceipt(**span, fingerprint=plan.fingerprint, files=files, attempts=rows.attempts)


class ForgetfulStore(Store):
    """Keeps nothing of what is put, and counts its bytes."""

    def __init__(self) -> None:
        super().__init__("/dev/null")
        self.bytes = 0

    def put(self, key: str, data: bytes) -> None:
        self.bytes += len(data)


def _provenance(plan: Plan, shard: Shard) -> dict[str, Any]:
    return {
        "generator": plan.card.name,
        "model": plan.digest,
        "seed": plan.seed,
        "fingerprint": plan.fingerprint,
        "start": shard.start,
        "stop": shard.stop,
        "training": plan.card.training,
        "genai_ray": plan.card.versions.get("genai-ray", ""),
    }


def with_settled_rows(plan: Plan) -> Plan:
    """The plan with the rows of a shard that give `generate.shard_bytes`, measured on the first samples."""
    target = plan.spec.shard_bytes
    if target is None:
        return plan
    stored = read_fields(plan.store)
    if stored is not None and stored.get("generate.shard_bytes") == target:
        # On another processor a file may have a byte more, and the number must not change.
        rows = stored["generate.shard_rows"]
    else:
        count = min(_PROBED, plan.spec.samples)
        forgetful = ForgetfulStore()
        ShardMaker(plan).files(Shard(0, 0, count), forgetful)
        rows = max(1, target * count // max(1, forgetful.bytes))
    spec = plan.spec.model_copy(update={"shard_rows": rows})
    return replace(plan, spec=spec, fields=plan.fields | {"generate.shard_rows": rows})
