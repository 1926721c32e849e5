"""Train a model, data-parallel, by Ray Train: `train(spec)`."""

from dataclasses import dataclass

from genai_ray import cluster, lease, modalities
from genai_ray.modality import Data
from genai_ray.progress import SHOWN, outline, show
from genai_ray.runs import refuse_other_data, refuse_other_spec, save_spec
from genai_ray.spec import Spec, dump
from genai_ray.storage import Store
from genai_ray.training import checkpoint
from genai_ray.training.group import resources, train_on_cluster, train_rank
from genai_ray.training.log import require_mlflow


@dataclass(frozen=True)
class TrainResult:
    """samples: real samples seen by the model; seconds and rate: of this call alone."""

    samples: int
    seconds: float
    rate: float


def train(spec: Spec, data: Data | None = None) -> TrainResult:
    """Train until `spec.train.samples` real samples were seen; resumes from the newest checkpoint.

    Raises:
        UserError: for bad input, another fingerprint, other data, or more workers than the cluster has.
        DivergedError: for a loss that is not finite.
        IncompleteError: if workers crash or do not come up, the store takes nothing, or another driver trains the run.
    """
    store = Store(spec.run_uri)
    store.check()
    if spec.train.mlflow:
        require_mlflow(spec.train.mlflow)
    data = data or modalities.of_spec(spec).load(spec)
    if spec.train.workers:
        cluster.connect(store)
        cluster.require(
            "train.workers",
            spec.train.least_workers,
            resources(spec),
            timeout_s=spec.train.start_timeout_s,
            remedy="Lower train.workers or train.cpus_per_worker, or use a larger cluster; "
            "train.start_timeout_s says how long to wait.",
        )
    with lease.hold(store, spec.train.lease_s, "train.lease_s") as held:
        refuse_other_spec(store, spec)
        if (stored := checkpoint.latest(store)) is not None:
            refuse_other_data(spec, stored["source"], data.digest)
        save_spec(store, spec)
        if (samples := finished(store, spec)) is not None:
            return TrainResult(samples=samples, seconds=0.0, rate=0.0)
        show(outline(data.summary, most=SHOWN))
        shared = {"spec": dump(spec), "codec": data.codec.to_json(), "source": data.digest}
        if spec.train.workers:
            result = train_on_cluster(spec, shared, data, held)
        else:
            result = train_rank(shared, data, rank=0, world=1, held=held)
        held.check()
    return TrainResult(**result)


def finished(store: Store, spec: Spec) -> int | None:
    """Samples seen by a run whose training is complete; None for any other."""
    newest = max(checkpoint.saved(store), default=0)
    if newest >= spec.train.samples:
        return newest
    if spec.train.patience and newest:
        state = checkpoint.latest(store)
        if state is not None and state["progress"]["ended"]:
            return state["samples"]
    return None
