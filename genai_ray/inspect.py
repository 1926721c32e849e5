"""What a run, a data set, a model file or a source of real data holds: `inspect(uri)`."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from genai_ray import modalities
from genai_ray.dataset.manifest import read_manifest
from genai_ray.errors import UserError
from genai_ray.onnx_session import read_model
from genai_ray.provenance import MODEL_KEY, Manifest
from genai_ray.runs import saved_spec
from genai_ray.spec import Spec
from genai_ray.storage import Store

_SHOWN = 8  # suffixes in a message


def inspect(uri: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The card of an ONNX file, what is read of a table or of images, the manifest of a data set, or the stages of a
    run.

    overrides: `data.…=value`, how to read a source.

    Raises:
        UserError: if the URI is none of these.
    """
    folder, _, name = uri.rstrip("/").rpartition("/")
    if name.endswith(".onnx"):
        try:
            model = Store(folder or ".", "uri").read(name)
        except FileNotFoundError:
            raise UserError("uri", uri, "must be a file that exists", "Check the path.") from None
        card, digest = read_model(model, where=uri)
        return {"digest": digest, "bytes": len(model), **json.loads(card.to_json())}
    store, spec, manifest = Store(uri, "uri"), None, None
    path = store.path()
    if path is None or not path.is_file():
        store.check(write=False)
        manifest = read_manifest(store) or read_manifest(store.at("dataset"))
        spec = saved_spec(store)
    if spec is None and manifest is None:
        source = modalities.describe(uri, overrides)
        if source is not None:
            return source
        if path is not None and not path.exists():
            raise UserError("uri", uri, "must exist", "Check the path.")
        rule = "must be a run, a data set, an ONNX file of ours, a table or images"
        suffixes = Counter(PurePosixPath(key).suffix or "no suffix" for key in store.sizes())
        if suffixes:
            rule += f"; it holds files of {', '.join(f'{s} ({n:,})' for s, n in suffixes.most_common(_SHOWN))}"
        remedy = "Give <store>/<name>, <store>/<name>/dataset, a .onnx file, or a source as data.root takes it."
        raise UserError("uri", uri, rule, remedy)
    contents: dict[str, Any] = {"uri": store.uri}
    if spec is not None:
        contents |= _stages(store, spec)
    if manifest is not None:
        contents["dataset"] = _described(manifest)
    return contents


def _stages(store: Store, spec: Spec) -> dict[str, Any]:
    from genai_ray.training import checkpoint

    return {
        "preset": spec.model.preset,
        "source": spec.data.source,
        "trained": max(checkpoint.saved(store), default=0),
        "of": spec.train.samples,
        "exported": store.exists(MODEL_KEY),
        "receipts": len(store.list("dataset/_receipts/")),
        "published": store.exists("dataset/_SUCCESS"),
    }


def _described(manifest: Manifest) -> dict[str, Any]:
    return {
        "rows": manifest.rows,
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "model": manifest.model,
        "fingerprint": manifest.fingerprint,
        "seed": manifest.fields["seed"],
        "accept_rate": manifest.accept_rate,
        **modalities.codec_from_json(manifest.card["codec"]).describe(),
    }
