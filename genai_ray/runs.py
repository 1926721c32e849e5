"""A run in its store: its spec, and whether what is stored belongs to a given spec."""

import contextlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from genai_ray import modalities
from genai_ray.errors import UserError
from genai_ray.spec import Spec, dump, fingerprint, format_yaml
from genai_ray.storage import Store

#: Of spec.yaml; version 0 wrote none.
FORMAT = 1
_PACKAGES = ("genai-ray", "ray", "torch", "onnxruntime-gpu", "onnxruntime", "pyarrow", "numpy")


def refuse_other_spec(store: Store, spec: Spec) -> None:
    """Raises:
    UserError: if training of the run began with a spec of another fingerprint, listing each field that differs.
    """
    saved = saved_spec(store)
    if saved is not None and store.list("train/"):
        refuse_difference(fingerprint.fields(saved, "train"), fingerprint.fields(spec, "train"), store.uri)


def refuse_other_data(spec: Spec, stored: str, loaded: str) -> None:
    """Raises:
    UserError: if the samples of the source (their digest: loaded) are not those that the run was trained on (stored).
    """
    if stored != loaded:
        field = "source" if spec.data.root is None else "root"
        raise UserError(
            f"data.{field}",
            getattr(spec.data, field),
            "holds other samples than the run was begun with",
            "Restore them, and the keys of data that say how they are read, or give the run another name.",
        )


def save_spec(store: Store, spec: Spec) -> None:
    """Write spec.yaml."""
    fields = fingerprint.fields(spec, "train")
    document = {"format": FORMAT, "spec": dump(spec), "fingerprint": fingerprint.digest(fields), "versions": versions()}
    store.put("spec.yaml", format_yaml(document).encode())


def saved_spec(store: Store) -> Spec | None:
    """The spec that is stored with a run; None if there is none."""
    try:
        document = yaml.safe_load(store.read("spec.yaml"))
    except FileNotFoundError:
        return None
    parse = modalities.parse if "format" in document else modalities.saved
    return parse(document["spec"])


def refuse_difference(stored: Mapping[str, Any], requested: Mapping[str, Any], uri: str) -> None:
    """Raise a UserError that lists every field whose stored and requested values differ."""
    names = [n for n in sorted({*stored, *requested}) if stored.get(n) != requested.get(n)]
    if names:
        pairs = ((n, json.dumps(stored.get(n)), json.dumps(requested.get(n))) for n in names)
        raise UserError(
            "fingerprint",
            uri,
            "was made with other values: "
            + "; ".join(f"{n} is {old} in the store and {new} here" for n, old, new in pairs),
            "Use the same values to resume, or another name=… or store=… for a new run.",
        )


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl: samples seen, and mean losses since the previous row."""
    try:
        lines = store.read("train/metrics.jsonl").decode().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def loss_curves(store: Store) -> dict[str, list[tuple[float, float]]]:
    """(samples seen, value) of each loss and score in metrics.jsonl, by name."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in read_metrics(store):
        for name, value in row.items():
            if name not in ("samples", "rate", "workers", "alarm"):
                curves.setdefault(name, []).append((row["samples"], value))
    return curves


def versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    installed = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
