"""The same ONNX graph in lower precision: functions of graphs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray


def to_fp16(model: bytes) -> onnx.ModelProto:
    """Half-precision weights and arithmetic; inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    proto = onnx.load_from_string(model)
    constants = {c.name: c for c in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Resize" and node.input[2] in constants:
            # Scales stay float32; the converter cannot do that for two nodes that share them.
            copied = proto.graph.initializer.add()
            copied.CopyFrom(constants[node.input[2]])
            copied.name = node.input[2] = f"{node.name}_scales"
    proto = convert_float_to_float16(proto, keep_io_types=True)
    OnnxModel(proto).topological_sort()  # the converter appends the casts of the inputs
    return proto


def to_int8(model: bytes, batches: Iterator[dict[str, NDArray[Any]]]) -> onnx.ModelProto:
    """8-bit weights and activations, whose ranges are measured on batches of inputs by name."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, NDArray[Any]] | None:  # pyright: ignore
            return next(batches, None)

    with tempfile.TemporaryDirectory(prefix="genai_ray-") as folder:
        path, prepared = Path(folder) / "model.onnx", Path(folder) / "prepared.onnx"
        path.write_bytes(model)
        quant_pre_process(path, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )
        return onnx.load(path)
