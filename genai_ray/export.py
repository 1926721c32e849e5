"""Turn a checkpoint into `model/generator.onnx`: one file that is enough to generate from.

The graph takes noise and labels, ends in uint8 pixels, and carries its ModelCard. It is compared
with torch before it is published; a difference fails the export.
"""

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from genai_ray import checkpoint, config, rng
from genai_ray.config import Spec
from genai_ray.data import codec_from_json
from genai_ray.errors import IncompleteError, ParityError, UserError
from genai_ray.models.image import fold_spectral
from genai_ray.provenance import BLANK, CARD_KEY, DIGEST_KEY, MODEL_KEY, ModelCard, seal
from genai_ray.runs import versions
from genai_ray.sampler import read_model
from genai_ray.state import new_family
from genai_ray.storage import Store
from genai_ray.train import finished

OPSET = 20
#: What a graph gives, by modality.
OUTPUTS = {"image": ("image",), "table": ("codes", "values")}
_PARITY_BATCHES = (1, 7, 256)
# Rounding to uint8 turns a float difference of 1e-7 into one grey level where a value lies on the
# edge between two; more than that is another model.
_PARITY_LEVELS = 1
_PARITY_SHARE = 1e-3
_PARITY_SPAN = 1e-4  # of the range of a column, which is no difference
_COMPARED = 256  # samples on which a lower precision is compared with fp32
_CALIBRATION_BATCHES = 4  # of as many, that tell the ranges of 8-bit activations


@dataclass(frozen=True)
class ExportResult:
    """uri: of the ONNX file; digest: its identity; bytes: its size; parity: the largest difference
    of the fp32 graph from torch, see `check_parity`; difference: the mean one of fp16 or int8 from
    that graph. None if the file was there before.
    """

    uri: str
    digest: str
    bytes: int
    parity: float | None
    difference: float | None


def export(spec: Spec) -> ExportResult:
    """Export the averaged model of a trained run (`train.keep`) in `export.precision`, unless that
    was done before.

    A model that is there is kept, since another version of torch may write other bytes, and the
    data set is bound to those that are there. One that was altered is replaced.

    Raises:
        IncompleteError: if the run is not trained to its end.
        UserError: if the lower precision differs from fp32 by more than `export.difference_max`.
        ParityError: if the exported graph does not give what torch gives.
    """
    store = Store(spec.run_uri)
    if finished(store, spec) is None:
        seen = max(checkpoint.saved(store), default=0)
        raise IncompleteError(
            f"{spec.run_uri} was trained on {seen:,} of {spec.train.samples:,} samples; "
            "run `genai-ray train` first"
        )
    state = checkpoint.best(store) if spec.train.keep == "best" else checkpoint.latest(store)
    if state is None:
        raise IncompleteError(
            f"{store.uri}/{checkpoint.BEST} is gone, so train.keep=best has nothing to export; "
            "delete the newest checkpoints to train that part again"
        )
    training = {
        "samples": state["samples"],
        "data": state["source"],
        "source": spec.data.source,
        "seed": spec.seed,
        "fingerprint": config.fingerprint(config.fingerprint_fields(spec, "train")),
    }
    precision = spec.export.precision
    if (done := _exported(store, training, precision)) is not None:
        return done
    codec = codec_from_json(state["codec"])
    family = new_family(spec, codec)
    family.nets[family.averaged].load_state_dict(state["average"])
    card = ModelCard(
        name=spec.name,
        preset=spec.model.preset,
        family=spec.model.family,
        latent=family.sampler_latent,
        conditional=spec.model.conditional,
        codec=codec.to_json(),
        training=training,
        precision=precision,
        given=family.given,
        versions=versions(),
    )
    sampler = family.sampler().eval()
    fold_spectral(sampler)
    whole = to_onnx(sampler, card)
    parity = check_parity(sampler, whole, card)
    lowered, difference = _lowered(whole, card, spec.export.difference_max)
    model, digest = seal(lowered)
    store.put(MODEL_KEY, model)
    store.put("model/card.json", json.dumps(json.loads(card.to_json()), indent=2).encode())
    return ExportResult(f"{spec.run_uri}/{MODEL_KEY}", digest, len(model), parity, difference)


def _lowered(model: bytes, card: ModelCard, difference_max: float) -> tuple[bytes, float]:
    """The graph in the precision of its card, and its mean difference from fp32 in grey levels.

    Raises:
        UserError: if the difference exceeds its limit.
    """
    if card.precision == "fp32":
        return model, 0.0
    lowered = LOWER[card.precision](model, card)
    difference = mean_difference(model, lowered, card)
    if difference > difference_max:
        raise UserError(
            "export.precision",
            card.precision,
            f"differs from fp32 by {difference:.2g} grey levels on average, more than "
            f"export.difference_max={difference_max:g}",
            "Use another precision, or raise export.difference_max if that is good enough.",
        )
    return lowered, difference


def _exported(store: Store, training: dict[str, Any], precision: str) -> ExportResult | None:
    """The model that is there, if it is whole and comes from this training."""
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
    names = ["noise", "label"][: len(arguments)]
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            sampler,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=names,
            output_names=list(OUTPUTS[card.codec["modality"]]),
            dynamic_shapes=tuple({0: batch} for _ in arguments),
        )
    assert program is not None
    model = program.model_proto
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
    del model.graph.metadata_props[:]
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        part.doc_string = ""
        del part.metadata_props[:]


def to_fp16(model: bytes, card: ModelCard) -> bytes:
    """The graph with half-precision weights and arithmetic; noise and pixels stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    proto = onnx.load_from_string(model)
    constants = {constant.name: constant for constant in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Resize" and node.input[2] in constants:
            # Its scales stay float32; the converter cannot do that for two that share them.
            own = proto.graph.initializer.add()
            own.CopyFrom(constants[node.input[2]])
            own.name = node.input[2] = f"{node.name}_scales"
    proto = convert_float_to_float16(proto, keep_io_types=True)
    OnnxModel(proto).topological_sort()  # casts of the inputs were put at the end
    return _with_card(proto, card)


def to_int8(model: bytes, card: ModelCard) -> bytes:
    """The graph with 8-bit weights and activations, whose ranges are those of a few samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(range(_CALIBRATION_BATCHES))

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore
            batch = next(self._batches, None)
            if batch is None:
                return None
            arguments = _inputs(card, start=batch * _COMPARED, count=_COMPARED)
            return {n: a.numpy() for n, a in zip(("noise", "label"), arguments, strict=False)}

    with tempfile.TemporaryDirectory(prefix="genai_ray-") as folder:
        path, prepared = Path(folder) / "model.onnx", Path(folder) / "prepared.onnx"
        path.write_bytes(model)
        quant_pre_process(path, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Samples(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )
        proto = onnx.load(path)
    return _with_card(proto, card)


LOWER: dict[str, Callable[[bytes, ModelCard], bytes]] = {"fp16": to_fp16, "int8": to_int8}


def mean_difference(one: bytes, other: bytes, card: ModelCard) -> float:
    """Between the images of two graphs for the same inputs, in grey levels."""
    arguments = _inputs(card, start=0, count=_COMPARED)
    images = []
    for model in (one, other):
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
        images.append(np.asarray(session.run(None, feed)[0]).astype(np.float64))
    return float(np.abs(images[0] - images[1]).mean())


def check_parity(sampler: nn.Module, model: bytes, card: ModelCard) -> float:
    """The largest difference between ONNX Runtime and torch: in grey levels of images, in shares of
    a column's range for tables.

    Raises:
        ParityError: if there is a difference in more than 0.1 % of the values, or one of more than
            a grey level.
    """
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    compare, limit = PARITY[card.codec["modality"]]
    worst, found = 0.0, []
    for count in _PARITY_BATCHES:
        arguments = _inputs(card, start=count, count=count)
        with torch.no_grad():
            expected = sampler(*arguments)
        feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
        outputs = [np.asarray(o) for o in session.run(None, feed)]
        expected = expected if isinstance(expected, tuple) else (expected,)
        found.append(compare(outputs, [e.numpy() for e in expected], card).ravel())
        worst = max(worst, float(found[-1].max(initial=0.0)))
    share = (np.concatenate(found) > 0).mean()
    if worst > limit or share > _PARITY_SHARE:
        raise ParityError(
            f"ONNX Runtime and torch differ by up to {worst:.4g}, in {share:.2%} of the values; "
            f"the limit is {limit:g} in {_PARITY_SHARE:.1%}"
        )
    return worst


def _pixel_difference(outputs: list[np.ndarray], expected: list[np.ndarray], card: ModelCard) -> np.ndarray:
    return np.abs(outputs[0].astype(np.int16) - expected[0].astype(np.int16))


def _cell_difference(outputs: list[np.ndarray], expected: list[np.ndarray], card: ModelCard) -> np.ndarray:
    """1 for another category, the share of the range for another number, of all cells."""
    numeric = codec_from_json(card.codec).numeric
    span = np.array([max(p.high - p.low, 1e-12) for p in numeric])
    absent = np.isnan(outputs[1])
    other = absent != np.isnan(expected[1])
    far = np.abs(np.where(absent, 0, outputs[1]) - np.where(absent, 0, expected[1])) / span
    far = np.where(other, 1.0, np.where(absent | (far < _PARITY_SPAN), 0.0, far))
    return np.concatenate([(outputs[0] != expected[0]).ravel() * 1.0, far.ravel()])


#: modality -> (differences of the outputs, the largest that is allowed)
PARITY: dict[str, tuple[Callable[..., np.ndarray], float]] = {
    "image": (_pixel_difference, _PARITY_LEVELS),
    # A uniform may fall on the edge between two codes, which then are far apart.
    "table": (_cell_difference, 1.0),
}


def _inputs(card: ModelCard, *, start: int, count: int) -> tuple[torch.Tensor, ...]:
    noise = torch.from_numpy(rng.normal(0, rng.Stream.EVALUATE, start, count, card.latent))
    if not card.conditional:
        return (noise,)
    return noise, torch.from_numpy(codec_from_json(card.codec).labels(count))
