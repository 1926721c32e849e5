"""A model file in ONNX Runtime, addressed by sample index. Needs neither Ray nor torch.

Sample i is a function of (model, seed, i) and of its label, so any worker can generate it, again, with the same result.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError
from genai_ray.provenance import ModelCard, open_card
from genai_ray.spec import GenerateSpec

_DRAWN_BATCHES = 16
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Sampler:
    """The outputs of a model file for samples by index.

    seed: of the data set. batch: samples in one call, unless the spec says otherwise. truncation: largest number in the
    noise; None: not cut.
    """

    def __init__(
        self, model: bytes, card: ModelCard, spec: GenerateSpec, seed: int, batch: int, truncation: float | None = None
    ):
        self.card, self.seed = card, seed
        self.batch = spec.batch or batch
        self.truncation = truncation
        self.session = open_session(model, spec)
        self._run = BoundRun(self.session, self.batch) if spec.device == "cuda" else self._plain

    def outputs(self, start: int, stop: int, labels: NDArray[np.int64] | None) -> tuple[NDArray[Any], ...]:
        """Outputs of the graph, each (N, ...), for samples start..stop.

        labels: (N, ...), one for each sample; None for a model that takes none.
        """
        results, chunk = _empty(self.session, stop - start), _DRAWN_BATCHES * self.batch
        for first in range(0, stop - start, chunk):
            # Drawing noise for several batches at once takes half the time of drawing for each.
            part = slice(first, min(first + chunk, stop - start))
            noise = rng.normal(
                self.seed, rng.Stream.SAMPLE_NOISE, start + first, part.stop - first, self.card.latent, self.truncation
            )
            self.run(noise, None if labels is None else labels[part], [r[part] for r in results])
        return results

    def run(
        self,
        noise: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
        results: Sequence[NDArray[Any]] | None = None,
    ) -> Sequence[NDArray[Any]]:
        """Outputs of the graph for noise (N, L), written into `results` if given.

        Every batch is filled up by repeats: a shorter one could be computed by another algorithm, and a GPU would
        search for one again.
        """
        batch = self.batch
        results = _empty(self.session, len(noise)) if results is None else results
        for start in range(0, len(noise), batch):
            feed: dict[str, Any] = {"noise": _filled(noise[start : start + batch], batch)}
            if labels is not None:
                feed["label"] = _filled(labels[start : start + batch], batch)
            for result, part in zip(results, self._run(feed), strict=True):
                result[start : start + batch] = part[: len(noise) - start]
        return results

    def _plain(self, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: Any = self.session.run(None, feed)
        return outputs


def _filled(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """A batch of `count` rows, filled up by repeats."""
    return rows if len(rows) == count else np.resize(rows, (count, *rows.shape[1:]))


#: Types of tensors, as ONNX Runtime names them.
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


def _empty(session: ort.InferenceSession, count: int) -> tuple[NDArray[Any], ...]:
    """Uninitialised arrays for `count` samples of each output."""
    return tuple(np.empty((count, *o.shape[1:]), _TYPES[o.type]) for o in session.get_outputs())


class BoundRun:
    """Calls of a session with one batch shape, whose arrays are allocated on the device once.

    Without it each call would allocate its inputs and outputs again, in memory that the GPU cannot access directly.
    """

    def __init__(self, session: ort.InferenceSession, batch: int, device: str = "cuda"):
        self.session, self.binding = session, session.io_binding()
        self._inputs: dict[str, ort.OrtValue] = {}
        self._outputs: list[ort.OrtValue] = []
        for node in session.get_inputs():
            value = self._inputs[node.name] = _value(node, batch, device)
            self.binding.bind_ortvalue_input(node.name, value)
        for node in session.get_outputs():
            self._outputs.append(_value(node, batch, device))
            self.binding.bind_ortvalue_output(node.name, self._outputs[-1])

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        for name, array in feed.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))
        self.session.run_with_iobinding(self.binding)
        return [value.numpy() for value in self._outputs]


def _value(node: Any, batch: int, device: str) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_shape_and_type([batch, *node.shape[1:]], _TYPES[node.type], device, 0)


def open_session(model: bytes, spec: GenerateSpec) -> ort.InferenceSession:
    """An ONNX Runtime session on the device of the spec; raises UserError if that cannot be used here."""
    if spec.device == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    provider = _PROVIDERS[spec.device]
    if provider in ort.get_available_providers():
        providers: Any = [(provider, provider_options(spec))]
        session = ort.InferenceSession(model, session_options(spec), providers=providers)
        if session.get_providers()[0] == provider:
            return session
    raise UserError(
        "generate.device",
        spec.device,
        f"needs {provider}, which does not load here",
        "Use generate.device=cpu, or install onnxruntime-gpu[cuda,cudnn] and a driver of CUDA 13.",
    )


def session_options(spec: GenerateSpec) -> ort.SessionOptions:
    """One thread for each CPU of the worker: Ray's CPU limit does not apply to ONNX Runtime's own pool."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(1, int(spec.cpus_per_worker))
    options.inter_op_num_threads = 1
    # Threads that spin between calls would take the cores of other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def provider_options(spec: GenerateSpec) -> dict[str, str]:
    """Options of the execution provider, as ONNX Runtime names them.

    The heuristic search looks at shapes alone. The exhaustive one times algorithms, so two starts could choose
    different ones, with different last bits.
    """
    if spec.device == "cpu":
        return {}
    options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    if spec.gpu_memory_gb is not None or spec.gpus_per_worker < 1:
        # The default, doubling the arena, would take the other workers' share.
        options["arena_extend_strategy"] = "kSameAsRequested"
    if spec.gpu_memory_gb is not None:
        options["gpu_mem_limit"] = str(round(spec.gpu_memory_gb * 1e9))
    return options


def read_model(model: bytes, *, where: str) -> tuple[ModelCard, str]:
    """The card and the digest of a model file.

    Raises:
        UserError: if genai_ray did not write it, or it was altered or is too new.
    """
    try:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base class of their own
        raise UserError(
            "model",
            where,
            f"must be an ONNX file ({str(error).splitlines()[0]})",
            "Export it again with `genai-ray export`.",
        ) from None
    return open_card(session.get_modelmeta().custom_metadata_map, model, where=where)
