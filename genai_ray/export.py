"""Turn a checkpoint into `model/generator.onnx`: one file that is enough to generate from.

The graph takes noise and labels, gives the outputs that the modality names, and holds its ModelCard. It is compared
with torch before it is stored; a difference fails the export.
"""

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from genai_ray import modalities, rng
from genai_ray.errors import IncompleteError, ParityError, UserError
from genai_ray.families import Family, WritesGraph
from genai_ray.modality import Codec, Outputs
from genai_ray.onnx_session import read_model
from genai_ray.precision import to_fp16, to_int8
from genai_ray.provenance import BLANK, CARD_KEY, DIGEST_KEY, MODEL_KEY, ModelCard, seal
from genai_ray.runs import versions
from genai_ray.spec import Spec, fingerprint
from genai_ray.storage import Store
from genai_ray.training import checkpoint
from genai_ray.training.state import new_family
from genai_ray.training.train import finished

OPSET = 20
_INPUTS = ("noise", "label")
_PARITY_BATCHES = (1, 7, 256)
_PARITY_SHARE = 1e-3
#: Values that are compared at least, so that the share counts several of them, and batches that are enough for it.
_PARITY_VALUES, _PARITY_MORE = 10_000, 64
_COMPARED = 256  # samples on which a lower precision is compared with fp32
_CALIBRATION_BATCHES = 4  # of as many samples, for the ranges of 8-bit activations


@dataclass(frozen=True)
class ExportResult:
    """uri: of the ONNX file; digest: its identity; bytes: its size; parity: the largest difference of the fp32 graph
    from torch, see `check_parity`; difference: the mean one of fp16 or int8 from that graph. Both are None if the
    model was exported before.
    """

    uri: str
    digest: str
    bytes: int
    parity: float | None
    difference: float | None


def export(spec: Spec) -> ExportResult:
    """Export the averaged model of a trained run (`train.keep`) in `export.precision`.

    An existing model is kept, since another version of torch may write other bytes, and the data set is bound to the
    existing ones. One that was altered is replaced.

    Raises:
        IncompleteError: if the run is not trained to its end.
        UserError: if the lower precision differs from fp32 by more than `export.difference_max`.
        ParityError: if the exported graph does not give what torch gives.
    """
    store = Store(spec.run_uri)
    if finished(store, spec) is None:
        seen = max(checkpoint.saved(store), default=0)
        raise IncompleteError(
            f"{spec.run_uri} was trained on {seen:,} of {spec.train.samples:,} samples; run `genai-ray train` first"
        )
    state = checkpoint.best(store) if spec.train.keep == "best" else checkpoint.latest(store)
    if state is None:
        raise IncompleteError(
            f"{store.uri}/{checkpoint.BEST} is missing, so train.keep=best has nothing to export; delete the newest "
            "checkpoints to train that part again"
        )
    training = {
        "samples": state["samples"],
        "data": state["source"],
        "source": spec.data.source,
        "seed": spec.seed,
        "fingerprint": fingerprint.digest(fingerprint.fields(spec, "train")),
    }
    if (existing := _exported(store, training, spec.export.precision)) is not None:
        return existing
    codec = modalities.codec_from_json(state["codec"])
    family = new_family(spec, codec)
    family.nets[family.averaged].load_state_dict(state["average"])
    card = card_of(spec, codec, family, training)
    sampler = family.sampler().eval()
    fold_parametrizations(sampler)
    graph = to_onnx(sampler, card)
    parity = check_parity(sampler, graph, card)
    graph, difference = _lowered(graph, card, spec.export.difference_limit)
    model, digest = seal(graph)
    store.put(MODEL_KEY, model)
    store.put("model/card.json", json.dumps(json.loads(card.to_json()), indent=2).encode())
    return ExportResult(f"{spec.run_uri}/{MODEL_KEY}", digest, len(model), parity, difference)


def _lowered(model: bytes, card: ModelCard, limit: float) -> tuple[bytes, float]:
    """The graph in the precision of its card, and its mean difference from fp32 in the unit of the modality.

    Raises:
        UserError: if the difference exceeds its limit.
    """
    if card.precision == "fp32":
        return model, 0.0
    if card.precision == "fp16":
        proto = to_fp16(model)
    else:
        samples = (_inputs(card, start=i * _COMPARED, count=_COMPARED) for i in range(_CALIBRATION_BATCHES))
        names = (zip(_INPUTS, arguments, strict=False) for arguments in samples)
        proto = to_int8(model, ({name: tensor.numpy() for name, tensor in pairs} for pairs in names))
    lowered = _with_card(proto, card)
    codec = modalities.codec_from_json(card.codec)
    kind = modalities.modality(codec.modality)
    arguments = _inputs(card, start=0, count=_COMPARED)
    original, changed = (_outputs(_session(graph), arguments) for graph in (model, lowered))
    difference = float(kind.difference(original, changed, codec).mean())
    if difference > limit:
        raise UserError(
            "export.precision",
            card.precision,
            f"differs from fp32 by {difference:.2g} {kind.unit} on average, more than export.difference_max={limit:g}",
            "Use another precision, or raise export.difference_max if that is good enough.",
        )
    return lowered, difference


def card_of(spec: Spec, codec: Codec, family: Family, training: Mapping[str, Any]) -> ModelCard:
    """The model card of a run."""
    return ModelCard(
        name=spec.name,
        preset=spec.model.preset,
        family=spec.model.family,
        latent=family.sampler_latent,
        conditional=spec.model.conditional,
        codec=codec.to_json(),
        training=dict(training),
        precision=spec.export.precision,
        given=family.given,
        versions=versions(),
    )


def _exported(store: Store, training: dict[str, Any], precision: str) -> ExportResult | None:
    """The model in the store, if it is intact and comes from this training."""
    uri = f"{store.uri}/{MODEL_KEY}"
    try:
        model = store.read(MODEL_KEY)
        card, digest = read_model(model, where=uri)
    except (FileNotFoundError, UserError):
        return None
    if (card.training, card.precision) != (training, precision):
        return None
    return ExportResult(uri, digest, len(model), None, None)


def to_onnx(sampler: nn.Module, card: ModelCard) -> bytes:
    """The sampler as ONNX with a dynamic batch, the card in it and a blank digest."""
    arguments = _inputs(card, start=0, count=2)
    inputs, outputs = _INPUTS[: len(arguments)], modalities.modality(card.codec["modality"]).outputs
    if isinstance(sampler, WritesGraph):
        return _with_card(sampler.graph([*inputs], [*outputs], OPSET), card)
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            sampler,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=inputs,
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in arguments),
        )
    assert program is not None
    model = program.model_proto  # a new object at every access
    _strip(model)
    return _with_card(model, card)


def _with_card(model: onnx.ModelProto, card: ModelCard) -> bytes:
    onnx.checker.check_model(model)
    onnx.helper.set_model_props(model, {CARD_KEY: card.to_json(), DIGEST_KEY: BLANK})
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return buffer.getvalue()


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they name files and lines of the machine it ran on."""
    graph = model.graph
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def check_parity(sampler: nn.Module, model: bytes, card: ModelCard) -> float:
    """The largest difference between ONNX Runtime and torch, in the unit of the modality.

    Raises:
        ParityError: if more than 0.1 % of the values differ, or one by more than the modality allows.
    """
    codec = modalities.codec_from_json(card.codec)
    kind = modalities.modality(codec.modality)
    session = _session(model)
    differences: list[NDArray[Any]] = []
    batches = [(count, count) for count in _PARITY_BATCHES]
    batches += [(i * _COMPARED, _COMPARED) for i in range(2, 2 + _PARITY_MORE)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a table's many small steps would wait for one another
    try:
        for number, (start, count) in enumerate(batches):
            if number >= len(_PARITY_BATCHES) and sum(map(len, differences)) >= _PARITY_VALUES:
                break
            arguments = _inputs(card, start=start, count=count)
            with torch.no_grad():
                expected = sampler(*arguments)
            expected = [e.numpy() for e in (expected if isinstance(expected, tuple) else (expected,))]
            differences.append(kind.difference(_outputs(session, arguments), expected, codec).ravel())
    finally:
        torch.set_num_threads(threads)
    difference = np.concatenate(differences)
    worst, share = float(difference.max(initial=0.0)), (difference > 0).mean()
    if worst > kind.parity or share > _PARITY_SHARE:
        raise ParityError(
            f"ONNX Runtime and torch differ by up to {worst:.4g} {kind.unit}, in {share:.2%} of the values; "
            f"the limit is {kind.parity:g} in {_PARITY_SHARE:.1%}"
        )
    return worst


def fold_parametrizations(module: nn.Module) -> None:
    """Replace every computed weight, such as a spectrally normalised one, by its value."""
    for layer in list(module.modules()):
        if is_parametrized(layer):
            remove_parametrizations(layer, "weight", leave_parametrized=True)


def _session(model: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def _outputs(session: ort.InferenceSession, arguments: tuple[torch.Tensor, ...]) -> Outputs:
    feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
    return [np.asarray(o) for o in session.run(None, feed)]


def _inputs(card: ModelCard, *, start: int, count: int) -> tuple[torch.Tensor, ...]:
    noise = torch.from_numpy(rng.normal(0, rng.Stream.EVALUATE, start, count, card.latent))
    labels = [torch.from_numpy(modalities.codec_from_json(card.codec).labels(count))] if card.conditional else []
    return noise, *labels
