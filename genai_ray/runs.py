"""A run in its store: whose it is, and whether what is there belongs to the spec at hand."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from genai_ray import modalities
from genai_ray.errors import UserError
from genai_ray.spec import Spec, dump, fingerprint
from genai_ray.storage import Store

#: Of spec.yaml; version 0 wrote none.
FORMAT = 1
_PACKAGES = ("genai-ray", "ray", "torch", "onnxruntime-gpu", "onnxruntime", "pyarrow", "numpy")


def claim(store: Store, spec: Spec) -> None:
    """Write spec.yaml, unless the run was trained by a spec that differs where it matters.

    Raises:
        UserError: listing each field that differs.
    """
    fields = fingerprint.fields(spec, "train")
    saved = saved_spec(store)
    if saved is not None and store.list("train/"):
        refuse_difference(fingerprint.fields(saved, "train"), fields, store.uri)
    document = {"spec": dump(spec), "fingerprint": fingerprint.digest(fields), "versions": versions()}
    store.put("spec.yaml", yaml.safe_dump(document, sort_keys=False).encode())


def saved_spec(store: Store) -> Spec | None:
    """The spec that a run was made with; None if there is none."""
    try:
        document = yaml.safe_load(store.read("spec.yaml"))
    except FileNotFoundError:
        return None
    read = modalities.parse if "format" in document else modalities.saved
    return read(document["spec"])


def refuse_difference(there: Mapping[str, Any], wanted: Mapping[str, Any], uri: str) -> None:
    """Raise a UserError that lists each field in which what is there is not what is wanted."""
    names = [n for n in sorted({*there, *wanted}) if there.get(n) != wanted.get(n)]
    if names:
        shown = "; ".join(
            f"{n} is {json.dumps(there.get(n))} there and {json.dumps(wanted.get(n))} here" for n in names
        )
        raise UserError(
            "fingerprint",
            uri,
            f"was made with other values: {shown}",
            "Use the same values to go on, or another name=… or store=… for a new run.",
        )


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl: samples seen, and mean losses since the row before."""
    try:
        lines = store.read("train/metrics.jsonl").decode().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def loss_curves(store: Store) -> dict[str, list[tuple[float, float]]]:
    """(samples seen, value) of each number in metrics.jsonl that is worth a curve."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in read_metrics(store):
        for name, value in row.items():
            if name not in ("samples", "rate", "workers", "alarm"):
                curves.setdefault(name, []).append((row["samples"], value))
    return curves


def versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
