"""Drawing a row column after column: in torch, and as an ONNX graph with a loop over the columns.

Traced, every column would be a step of its own: an export of 25 columns took more than half a minute, one of 300 had
not ended after six. The loop is written once, whatever the number of columns.
"""

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from genai_ray.table.nets import BusinessValues, Layout, normal_cdf, pick

_REACH = 0.99  # of a scalar inside a mode
_SPREAD = 0.25  # a mode's standard deviation, its scale being four of them


class ArSampler(nn.Module):
    """(noise (N, P + M), labels (N, P) int64) -> codes (N, D) int64, values (N, M) float64.

    The noise of a part picks its code; that of a number picks the position inside the bin or mode.
    """

    def __init__(self, net: nn.Module, layout: Layout):
        super().__init__()
        self.net, self.layout = net, layout
        self.values = BusinessValues(layout)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        net: Any = self.net
        layout, parts = self.layout, len(self.layout.sizes)
        uniform = normal_cdf(noise)
        free = torch.full_like(noise[:, :parts], -1).long() if labels is None else layout.known(labels)
        known = [torch.where(free[:, i] >= 0, free[:, i], size) for i, size in enumerate(layout.sizes)]
        total = net.embedded(0, known[0])
        for i in range(1, parts):
            total = total + net.embedded(i, known[i])
        codes = []
        for i in range(parts):
            head = slice(layout.starts[i], layout.starts[i] + layout.sizes[i])
            logits = F.linear(net.hidden(total), net.heads.weight[head], net.heads.bias[head])
            picked = pick(logits, uniform[:, i : i + 1])
            code = torch.where(free[:, i] >= 0, free[:, i], picked)
            total = total - net.embedded(i, known[i]) + net.embedded(i, code)
            codes.append(code)
        stacked = torch.stack(codes, 1)
        scalars = self._scalars(uniform[:, parts:], noise[:, parts:])
        return layout.of_discrete(stacked), self.values(layout.of_numeric(stacked), scalars)

    def _scalars(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Places inside bins are uniform; inside modes, normal of a quarter of their scale."""
        if self.layout.bins:
            return 2 * uniform - 1
        return (_SPREAD * normal).clamp(-_REACH, _REACH)

    def graph(self, inputs: list[str], outputs: list[str], opset: int) -> onnx.ModelProto:
        """`forward` as ONNX with a dynamic batch; see `families.WritesGraph`."""
        layout, parts = self.layout, len(self.layout.sizes)
        main = _Nodes("")
        noise = inputs[0]
        uniform = main("Mul", noise, main.constant(np.float32(2**-0.5)))
        uniform = main(
            "Mul", main("Add", main("Erf", uniform), main.constant(np.float32(1))), main.constant(np.float32(0.5))
        )
        width = parts + len(layout.numeric)
        of_parts, rest = (main.columns(uniform, *ends) for ends in ((0, parts), (parts, width)))
        if len(inputs) > 1:
            free = main("Transpose", inputs[1], perm=[1, 0])
        else:
            shape = main("Shape", main("Transpose", of_parts, perm=[1, 0]))
            free = main("ConstantOfShape", shape, value=helper.make_tensor("", TensorProto.INT64, [1], [-1]))
        codes = self._loop(main, main("Transpose", of_parts, perm=[1, 0]), free)
        if layout.bins:
            scalars = main("Sub", main("Mul", rest, main.constant(np.float32(2))), main.constant(np.float32(1)))
        else:
            normal = main("Mul", main.columns(noise, parts, width), main.constant(np.float32(_SPREAD)))
            ends = (main.constant(np.float32(end)) for end in (-_REACH, _REACH))
            scalars = main("Clip", normal, *ends)
        main("Gather", codes, main.constant(np.array(layout.discrete, np.int64)), axis=1, name=outputs[0])
        numeric = main("Gather", codes, main.constant(np.array(layout.numeric, np.int64)), axis=1)
        self._business_values(main, numeric, scalars, outputs[1])
        float_, whole = TensorProto.FLOAT, TensorProto.INT64
        taken = [helper.make_tensor_value_info(noise, float_, ["batch", width])]
        taken += [helper.make_tensor_value_info(name, whole, ["batch", parts]) for name in inputs[1:]]
        given = [
            helper.make_tensor_value_info(outputs[0], whole, ["batch", len(layout.discrete)]),
            helper.make_tensor_value_info(outputs[1], TensorProto.DOUBLE, ["batch", len(layout.numeric)]),
        ]
        graph = helper.make_graph(main.nodes, "rows", taken, given, main.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)

    def _loop(self, main: "_Nodes", uniform: str, free: str) -> str:
        """Codes (N, P) from uniforms and requested codes, both (P, N)."""
        net: Any = self.net
        sizes = np.array(self.layout.sizes, np.int64)
        free = main("Min", free, main.constant(sizes[:, None] - 1))  # a code beyond the last is the last
        fixed = main("GreaterOrEqual", free, main.constant(np.int64(0)))
        known = main("Where", fixed, free, main.constant(sizes[:, None]))
        known = main("Add", known, main.constant(np.array(net.starts, np.int64)[:, None]))
        table = main.constant(_array(net.values.weight))
        count, true = main.constant(np.array(len(sizes), np.int64)), main.constant(np.array(True))
        batch = main("Shape", free, start=1, end=2)
        width = main.constant(np.array([net.values.weight.shape[1]], np.int64))
        empty = main("ConstantOfShape", main("Concat", batch, width, axis=0))

        body = _Nodes("sum_")
        added = body("Add", "sum_total", body("Gather", table, body("Gather", known, "sum_step")))
        total = main.loop(body, count, true, empty, "sum_", [added], [])

        body = _Nodes("draw_")
        starts = np.array(self.layout.starts, np.int64)
        first, last = (body("Gather", main.constant(of[:, None]), "draw_step") for of in (starts, starts + sizes))
        axis = main.constant(np.array([0], np.int64))
        weight = body("Slice", main.constant(_array(net.heads.weight)), first, last, axis)
        bias = body("Slice", main.constant(_array(net.heads.bias)), first, last, axis)
        logits = body("Gemm", self._hidden(main, body, "draw_total"), weight, bias, transB=1)
        ends = body("CumSum", body("Softmax", logits, axis=1), main.constant(np.array(1, np.int64)))
        one = main.constant(np.array([1], np.int64))
        above = body("Greater", body("Unsqueeze", body("Gather", uniform, "draw_step"), one), ends)
        picked = body("ReduceSum", body("Cast", above, to=TensorProto.INT64), one, keepdims=0)
        picked = body("Min", picked, body("Gather", main.constant(sizes - 1), "draw_step"))
        code = body("Where", body("Gather", fixed, "draw_step"), body("Gather", free, "draw_step"), picked)
        at = body("Add", code, body("Gather", main.constant(np.array(net.starts, np.int64)), "draw_step"))
        without = body("Sub", "draw_total", body("Gather", table, body("Gather", known, "draw_step")))
        carried = body("Add", without, body("Gather", table, at))
        codes = main.loop(body, count, true, total, "draw_", [carried], [code])
        return main("Transpose", codes, perm=[1, 0])

    def _hidden(self, main: "_Nodes", body: "_Nodes", x: str) -> str:
        """`SetNetwork.hidden`."""
        net: Any = self.net

        def normed(layer: Any, x: str) -> str:
            weight, bias = (main.constant(_array(part)) for part in (layer.weight, layer.bias))
            return body("Relu", body("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps))

        for block in net.blocks:
            linear = block[-1]
            weight, bias = (main.constant(_array(part)) for part in (linear.weight, linear.bias))
            output = body("Gemm", normed(block[0], x), weight, bias, transB=1)
            x = body("Add", x, output) if linear.in_features == linear.out_features else output
        return normed(net.norm, x)

    def _business_values(self, main: "_Nodes", codes: str, scalars: str, name: str) -> None:
        """`BusinessValues.forward`."""
        used = ("step", "phase") if self.values.stepped else ()
        buffers = self.values.named_buffers()
        flat = {k: main.constant(_array(b)) for k, b in buffers if k in used or k not in ("step", "phase")}
        at = main("Add", codes, flat["starts"])
        offset, scale, low, high = (main("Gather", flat[key], at) for key in ("offset", "scale", "low", "high"))
        values = main("Add", offset, main("Mul", scale, main("Cast", scalars, to=TensorProto.DOUBLE)))
        values = main("Min", main("Max", values, low), high)
        zero, one = (main.constant(np.float64(x)) for x in (0, 1))
        if self.values.stepped:
            step, phase = (main("Gather", flat[key], at) for key in ("step", "phase"))
            spaced = main("Greater", step, zero)
            step = main("Where", spaced, step, one)
            whole = main("Round", main("Div", main("Sub", values, phase), step))
            values = main("Where", spaced, main("Add", phase, main("Mul", whole, step)), values)
        rounded = main("Greater", flat["unit"], zero)
        unit = main("Where", rounded, flat["unit"], one)
        values = main("Where", rounded, main("Div", main("Round", main("Mul", values, unit)), unit), values)
        missing = main("Equal", codes, flat["missing"])
        main("Where", missing, main.constant(np.float64("nan")), values, name=name)


class _Nodes:
    """The nodes of a graph, or of the body of a loop, whose values have a name; `prefix` keeps names apart."""

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """The name of the output of one more node."""
        name = name or f"{self.prefix}{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, array: NDArray[Any] | np.generic) -> str:
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def columns(self, x: str, start: int, stop: int) -> str:
        """x[:, start:stop]."""
        return self("Slice", x, *(self.constant(np.array([n], np.int64)) for n in (start, stop, 1)))

    def loop(
        self, body: "_Nodes", count: str, true: str, carried: str, prefix: str, next_: list[str], scanned: list[str]
    ) -> str:
        """A loop whose body has the values `step`, `total` (N, width) of the prefix; its last output: the scanned
        values (steps, N) if there are any, else the total.
        """
        assert not body.constants
        total = ["batch", "width"]
        ends = body("Identity", f"{prefix}condition")
        kinds = [
            helper.make_tensor_value_info(f"{prefix}step", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{prefix}condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{prefix}total", TensorProto.FLOAT, total),
        ]
        outputs = [
            helper.make_tensor_value_info(ends, TensorProto.BOOL, []),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, total) for name in next_),
            *(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"]) for name in scanned),
        ]
        graph = helper.make_graph(body.nodes, f"{prefix}body", kinds, outputs)
        results = [f"{prefix}result_{i}" for i in range(len(next_) + len(scanned))]
        self.nodes.append(helper.make_node("Loop", [count, true, carried], results, body=graph))
        return results[-1]


def _array(part: Tensor) -> NDArray[Any]:
    return part.detach().cpu().numpy()
