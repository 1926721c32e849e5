"""The plan of a data set: all that its shards depend on."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from genai_ray import modalities
from genai_ray.errors import IncompleteError, UserError
from genai_ray.modality import Modality, Rows, Samples, Sink
from genai_ray.onnx_session import read_model
from genai_ray.provenance import MODEL_KEY, ModelCard
from genai_ray.runs import refuse_difference
from genai_ray.spec import GenerateSpec, Spec, fingerprint, section_type
from genai_ray.storage import Store

_FIELDS = "_fields.json"
_CONDITIONS = "_conditions.parquet"


@dataclass(frozen=True)
class Shard:
    """Samples start..stop of a data set: the unit of work, of retry and of resume."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """All that the shards of a data set depend on.

    spec: with `shard_rows` fixed. digest: of the model. conditions: the content of a request that came as a file.
    fields: dotted name -> every value that can change the data set.
    """

    store: Store
    spec: GenerateSpec
    model: bytes
    card: ModelCard
    digest: str
    producer: str | None
    conditions: bytes | None
    fields: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint.digest(self.fields)

    @property
    def seed(self) -> int:
        return self.fields["seed"]

    @property
    def shard_count(self) -> int:
        return -(-self.spec.samples // self.spec.shard_rows)

    def shard(self, index: int) -> Shard:
        rows, total = self.spec.shard_rows, self.spec.samples
        return Shard(index, index * rows, min((index + 1) * rows, total))

    @property
    def sink(self) -> Sink[Rows]:
        return self._modality.sinks[self.spec.sink]()

    def samples(self) -> Samples[Rows]:
        return self._modality.samples(self.model, self.card, self.spec, self.seed, self.conditions)

    @property
    def _modality(self) -> Modality[Rows]:
        return modalities.modality(self.card.codec["modality"])


def open_plan(spec: Spec) -> Plan:
    """Read the model of a run and check that the data set can be made; nothing is written.

    Raises:
        UserError: for a model file that is missing, foreign or altered, for bad classes or conditions, and for what
            the sink cannot use.
        IncompleteError: if the run has no model yet.
    """
    store = Store(spec.run_uri).at(spec.generate.into)
    model, card, digest = _model_of(store)
    kind = modalities.of_spec(spec)
    sink = kind.sinks[spec.generate.sink]()
    fields = fingerprint.fields(spec, "generate") | {"seed": spec.generation_seed, "model": digest}
    if spec.generate.device == "cuda":
        # On a GPU, another shape may be computed by another algorithm.
        fields["generate.batch"] = spec.generate.batch or kind.batch
    conditions = kind.conditions(spec.generate, card, sink.reserved)
    if conditions is not None:
        fields["generate.conditions"] = hashlib.sha256(conditions).hexdigest()
    plan = Plan(store, spec.generate, model, card, digest, spec.provenance.producer, conditions, fields)
    samples = plan.samples()
    if sink.check is not None:
        sink.check(spec.generate, store, samples.schema)
    if read_fields(store) is None:
        samples.probe()
    return plan


def reopen(store: Store, fields: dict[str, Any], technical: dict[str, Any] | None = None) -> Plan:
    """The plan of a data set from the values it was begun with; no spec is needed.

    Args:
        store: of the data set, in the run that holds the model.
        fields: see `read_fields`.
        technical: the section generate of a spec, for batch, device and other keys that change no result.

    Raises:
        UserError: if the model of the run is not the one that the data set was begun with.
    """
    model, card, digest = _model_of(store)
    if digest != fields["model"]:
        raise UserError(
            "model",
            f"{run_of(store).uri}/{MODEL_KEY}",
            f"is not the model that this data set was made from ({fields['model'][:16]}…)",
            "Put that model back.",
        )
    kind = modalities.modality(card.codec["modality"])
    values = {k.removeprefix("generate."): v for k, v in fields.items() if "generate." in k}
    kept = isinstance(values["conditions"], str)  # the digest of a file that is kept in the data set
    if kept:
        del values["conditions"]
    section = section_type(kind.spec, "generate", values)
    values = {k: v for k, v in values.items() if k in section.effective(values)}
    outside = {k: v for k, v in (technical or {}).items() if f"generate.{k}" not in fields}
    generate = section.model_validate(outside | values)
    assert isinstance(generate, GenerateSpec)
    conditions = store.read(_CONDITIONS) if kept else None
    return Plan(store, generate, model, card, digest, fields["provenance.producer"], conditions, fields)


def run_of(store: Store) -> Store:
    """The run that a data set belongs to."""
    return Store(store.uri.rpartition("/")[0])


def _model_of(store: Store) -> tuple[bytes, ModelCard, str]:
    run = run_of(store)
    try:
        model = run.read(MODEL_KEY)
    except FileNotFoundError:
        raise IncompleteError(f"{run.uri} has no model; run `genai-ray train` and `genai-ray export` first") from None
    return model, *read_model(model, where=f"{run.uri}/{MODEL_KEY}")


# --- the values that a data set is made with -----------------------------------------------------


def read_fields(store: Store) -> dict[str, Any] | None:
    """The values that a data set was begun with; None if it was not."""
    try:
        return json.loads(store.read(_FIELDS))
    except FileNotFoundError:
        return None


def refuse_other_fields(plan: Plan) -> None:
    """Raises:
    UserError: if the stored data set was begun with other values, listing each.
    """
    stored = read_fields(plan.store)
    if stored is not None:
        refuse_difference(stored, plan.fields, plan.store.uri)


def write_fields(plan: Plan) -> None:
    """Store the values that the data set is made with, before anything else of it is written."""
    if plan.conditions is not None:
        plan.store.put(_CONDITIONS, plan.conditions)
    fields = json.dumps(plan.fields, sort_keys=True).encode()
    if not plan.store.put_if_absent(_FIELDS, fields):
        refuse_other_fields(plan)  # another driver was faster
