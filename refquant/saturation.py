"""Which int8 layers lose bits because products of bytes are added in pairs of 16 bits.

Machines without VNNI multiply bytes in pairs whose sum saturates to int16, and fbgemm's depthwise
kernel does so everywhere. What is lost is silent. Without inputs :func:`saturation_report` proves
from the weights which layers cannot saturate; with inputs it counts what did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.graph import Absent, Graph, Node, Value
from refquant.ir.qtensor import QTensor, Tensor
from refquant.ir.target import Target
from refquant.ir.types import qint8, quint8
from refquant.kernels import (
    quantize_per_tensor_dynamic,
    quantized_conv,
    quantized_conv_transpose,
    quantized_linear,
    requantize,
)
from refquant.kernels.accumulate import Sums
from refquant.kernels.convolve_pairs import seen_rows
from refquant.kernels.packing import PackedWeight
from refquant.kernels.pairs import count_saturated
from refquant.kernels.quantize_per_tensor_dynamic import qparams_of
from refquant.kernels.walk import Window

Int8 = npt.NDArray[np.int8]
LOWEST, HIGHEST = -(2**15), 2**15 - 1
# Ops whose integers are some of their input's.
_KEEP = (
    *("max_pool", "reshape", "view", "flatten", "permute", "transpose", "contiguous", "squeeze"),
    *("unsqueeze", "dropout", "channel_shuffle", "pixel_shuffle", "upsample_nearest", "slice"),
)
# A dynamic layer with reduce_range aims at 127; the zero point's rounding can add one.
_REDUCED = 128


class Pair(NamedTuple):
    """Two neighbours of a weight, and what they reach at most.

    Parameters
    ----------
    channel : int
        Output channel.
    number : int
        Number of the pair in the channel, in the order in which the engine multiplies.
    weights, activations : tuple of int
        The two weights, and the raw activations at which their sum is farthest from 0.
    sum : int
        That sum, before it saturates.
    """

    channel: int
    number: int
    weights: tuple[int, int]
    activations: tuple[int, int]
    sum: int


class Count(NamedTuple):
    """What saturated in a run: pairs of products, and outputs that hold at least one of them."""

    saturated: int
    pairs: int
    affected: int
    outputs: int


@dataclass(frozen=True)
class Layer:
    """One int8 layer of a report.

    Parameters
    ----------
    node, op, path : str
        The node, its op, and the module it came from.
    sums : str
        How its products are added on this machine.
    low, high : int
        Raw activations that can reach it.
    worst : Pair or None
        The pair with the largest overshoot; None where sums are exact.
    largest : int
        Largest activation with which no pair saturates; 255 where none can.
    bits : int
        Bits of the activations to give up so that none does; 0 where none does now.
    safe : bool
        Whether no pair can saturate.
    count : Count or None
        What saturated with the given inputs.
    """

    node: str
    op: str
    path: str
    sums: str
    low: int
    high: int
    worst: Pair | None
    largest: int
    bits: int
    safe: bool
    count: Count | None = None


@dataclass(frozen=True)
class SaturationReport:
    """What :func:`saturation_report` found, layer by layer; prints as a table."""

    target: str
    layers: tuple[Layer, ...]

    @property
    def safe(self) -> bool:
        """Whether it is proven that no layer saturates, whatever the inputs are."""
        return all(layer.safe for layer in self.layers)

    @property
    def saturated(self) -> tuple[str, ...]:
        """Names of the nodes that saturated with the given inputs."""
        return tuple(x.node for x in self.layers if x.count and x.count.saturated)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        layers = []
        for layer in self.layers:
            data = asdict(layer)
            data["worst"] = layer.worst and layer.worst._asdict()
            data["count"] = layer.count and layer.count._asdict()
            layers.append(data)
        return {"target": self.target, "safe": self.safe, "layers": layers}

    def __str__(self) -> str:
        counted = any(layer.count for layer in self.layers)
        head = ["layer", "op", "activations", "verdict"] + ["saturated"] * counted
        rows = [head, *([*_row(layer), *_counted(layer, counted)] for layer in self.layers)]
        wide = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(t.ljust(w) for t, w in zip(row, wide, strict=True)) for row in rows]
        verdict = "no layer can saturate" if self.safe else "some layers can saturate"
        return "\n".join([f"{self.target}: {verdict}", *(line.rstrip() for line in lines)])


def _row(layer: Layer) -> list[str]:
    verdict = "exact sums" if layer.worst is None else "cannot saturate"
    if layer.worst is not None and not layer.safe:
        (first, second), (a, b) = layer.worst.weights, layer.worst.activations
        verdict = (
            f"{a}*{first} + {b}*{second} = {layer.worst.sum} in channel {layer.worst.channel}; "
            f"safe up to {layer.largest} (give up {layer.bits} bit)"
        )
    return [layer.node, layer.op, f"{layer.low}..{layer.high}", verdict]


def _counted(layer: Layer, counted: bool) -> list[str]:
    if not counted or layer.count is None:
        return [""] * counted
    count = layer.count
    return [
        f"{count.saturated} of {count.pairs} pairs ({_share(count.saturated, count.pairs)}), "
        f"{count.affected} of {count.outputs} outputs ({_share(count.affected, count.outputs)})"
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.2%}"


class _Found(NamedTuple):
    """An int8 layer as the engine runs it."""

    node: Node
    weight: PackedWeight
    window: Window | None
    sums: Sums


def saturation_report(
    graph: Any,
    inputs: Tensor | Sequence[Tensor] | None = None,
    target: Target | str | None = None,
) -> SaturationReport:
    """Tell which int8 layers of a graph saturate products of bytes to 16 bits.

    Parameters
    ----------
    graph : Graph, or a model that has one
        What is run; weights must be constants.
    inputs : array, QTensor or sequence of them, optional
        The graph's inputs. They are run on the target, and what saturates is counted. The proof
        is given in any case.
    target : Target or str, optional
        The machine, such as ``"fbgemm/avx2"``; by default the graph's own.

    Returns
    -------
    SaturationReport
        A layer is *safe* if no activation between ``low`` and ``high`` saturates any pair of its
        weights. That is exact: a layer that is not safe has inputs that saturate it, unless
        earlier layers never give them. ``high`` is 255 unless the producer bounds it.

    Raises
    ------
    VerifyError
        If ``graph`` is no graph, a weight is not constant or the inputs do not fit.
    UnsupportedError
        If the target's numerics of a layer are not known.

    Examples
    --------
    >>> from refquant import parse
    >>> weight = QTensor(np.int8([[127, 2], [5, -5]]), 0.5, 0, None, qint8)
    >>> graph = _example(weight)
    >>> report = saturation_report(graph, target="fbgemm/avx2")
    >>> print(report)
    fbgemm/avx2/threads=1: some layers can saturate
    layer  op                 activations  verdict
    y      quantized::linear  0..255       255*127 + 255*2 = 32895 in channel 0; safe up to 254 \
(give up 1 bit)
    >>> saturation_report(graph, target="fbgemm").safe
    True
    >>> feed = QTensor(np.uint8([[255, 255], [255, 0]]), 1.0, 0)
    >>> saturation_report(graph, feed, "fbgemm/avx2").layers[0].count
    Count(saturated=1, pairs=4, affected=1, outputs=4)
    """
    if not isinstance(graph, Graph):
        graph = getattr(graph, "graph", None)
    if not isinstance(graph, Graph):
        raise VerifyError("saturation_report: expected a Graph or a model that has one")
    machine = Target.parse(target) if isinstance(target, str) else target or graph.target
    found = list(_layers(graph, machine))
    counts: dict[str, Count] = {}
    if inputs is not None:
        feeds = (inputs,) if isinstance(inputs, np.ndarray | QTensor) else tuple(inputs)
        names = {name for layer in found if (name := _feed(layer.node).name)}
        values = graph.run(*feeds, target=machine, record=names - set(graph.parameters)).values
        for layer in found:
            name = _feed(layer.node).name
            data = values[name] if name in values else graph.parameter(name)
            counts[layer.node.name] = _count(layer, data, machine)
    producers = {value.name: node for node in graph.nodes for value in node.outputs}
    layers = (_prove(layer, producers, counts.get(layer.node.name)) for layer in found)
    return SaturationReport(str(machine), tuple(layers))


def _example(weight: QTensor) -> Graph:
    """Return a graph with one linear layer."""
    from refquant.ir.types import QParams, TensorType

    x = Value("x", TensorType(quint8, (2, weight.shape[1]), QParams(1.0, 0)))
    y = Value("y", TensorType(quint8, (2, weight.shape[0]), QParams(1.0, 0)))
    inputs = (x, Value("weight", weight.type), None)
    node = Node("quantized::linear", inputs, {"scale": 1.0, "zero_point": 0}, (y,))
    return Graph([x], [node], (y,), parameters={"weight": weight})


def _feed(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _zero_point(value: Value) -> int:
    """Return the zero point of a value quantized per tensor, 0 for a float."""
    return 0 if value.type.qparams is None else int(np.max(value.type.qparams.zero_point))


def _layers(graph: Graph, target: Target) -> Iterator[_Found]:
    """Yield the layers that multiply bytes by a constant weight."""
    for node in graph.nodes:
        stem = node.op.partition("::")[2]
        namespace = node.op.partition("::")[0]
        product = stem.startswith(("linear", "conv")) and "fp16" not in stem
        if namespace not in ("quantized", "_quantized") or not product:
            continue
        name = node.inputs[1].name if node.inputs[1] is not None else ""
        weight = graph.parameters.get(name)
        if isinstance(weight, Absent):
            weight = graph.parameter(name)  # says why there is none
        if not isinstance(weight, QTensor):
            raise VerifyError(f"saturation_report: node {node}: its weight is not a constant")
        try:
            yield _layer(node, weight, target)
        except RefquantError as error:
            raise type(error)(f"node {node}: {error}") from None


def _layer(node: Node, weight: QTensor, target: Target) -> _Found:
    attributes: dict[str, Any] = dict(node.attributes)
    kind, zero_point = _feed(node).type, _zero_point(_feed(node))
    signed = kind.dtype == qint8
    if "linear" in node.op:
        requantize.stage_for(node.op, requantize.LINEAR, target)
        empty = np.zeros((0, weight.shape[1]), np.int8 if signed else np.uint8)
        x = QTensor(empty, 1.0, zero_point, None, qint8 if signed else quint8)
        sums = quantized_linear.sums_of(x, target)
        return _Found(node, quantized_linear.pack(weight), None, sums)
    shape = tuple(size if isinstance(size, int) else 1 for size in kind.shape)
    x = QTensor(np.broadcast_to(np.uint8(0), shape), 1.0, zero_point)
    keys = ("stride", "padding", "dilation")
    stride, padding, dilation = (attributes[key] for key in keys)
    groups = int(attributes["groups"])
    if "transpose" in node.op:
        across = quantized_conv_transpose.Geometry(
            weight.shape[2:], stride, padding, attributes["output_padding"], dilation
        )
        _, sums = quantized_conv_transpose.plan(node.op, x, weight, across, groups, target)
        packed = quantized_conv_transpose.pack(weight, **attributes)
        return _Found(node, packed, across.window(shape[2:]), sums)
    geometry = quantized_conv.Geometry(weight.shape[2:], stride, padding, dilation, groups)
    _, sums = quantized_conv.plan(node.op, x, weight, geometry, target)
    packed = quantized_conv.pack(weight, **attributes)
    return _Found(node, packed, geometry.window(shape[2:]), sums)


# ---- the proof


def _bounds(value: Value, producers: dict[str, Node]) -> tuple[int, int]:
    """Return the smallest and largest integer that a quint8 value can hold."""
    low, high = 0, 255
    node = producers.get(value.name)
    qparams = value.type.qparams
    if value.type.dtype == qint8:
        return qint8.limits
    if node is None or qparams is None or value.type.dtype != quint8:
        return low, high
    stem = node.op.partition("::")[2]
    zero_point, scale = _zero_point(value), float(np.max(qparams.scale))
    if (stem.startswith("relu") or "_relu" in stem) and "leaky" not in stem:
        low = zero_point
        if "relu6" in stem:
            high = min(255, round(6.0 / scale) + zero_point + 1)
    source = node.inputs[0] if node.inputs else None
    keeps = any(part in stem for part in _KEEP)
    if source is not None and source.type.qparams == qparams and (keeps or stem == "relu"):
        inner = _bounds(source, producers)
        low, high = max(low, inner[0]), min(high, inner[1])
    if stem in ("clamp", "hardtanh"):
        for key in ("min", "max", "min_val", "max_val"):
            limit = node.attributes.get(key)
            if isinstance(limit, int | float):
                step = min(max(round(limit / scale) + zero_point, 0), 255)
                low = max(low, step - 1) if key.startswith("min") else low
                high = min(high, step + 1) if key.startswith("max") else high
    return low, high


def _prove(layer: _Found, producers: dict[str, Node], count: Count | None) -> Layer:
    node, weight, _, sums = layer
    value = _feed(node)
    low, high = _bounds(value, producers)
    if node.attributes.get("reduce_range"):
        high = _REDUCED
    zero_point = _zero_point(value)
    if sums is Sums.PAIRED and layer.window is not None:  # padding multiplies too
        low, high = min(low, zero_point), max(high, zero_point)
    elif sums is Sums.PAIRED_INSIDE:  # a tap beside one that is left out
        low = 0
    path = node.origin.path if node.origin else ""
    if sums is Sums.EXACT:
        names = (node.name, node.op, path, sums.value)
        return Layer(*names, low, high, None, 255, 0, True, count)
    matrix = weight.pairs(sums is Sums.PAIRED_IN_TAPS)
    worst = worst_pair(matrix, low, high)
    largest = largest_activation(matrix, low)
    safe = LOWEST <= worst.sum <= HIGHEST
    bits = next(bits for bits in range(9) if 2 ** (8 - bits) - 1 <= largest)
    bits = 0 if safe else bits
    return Layer(
        node.name, node.op, path, sums.value, low, high, worst, largest, bits, safe, count
    )


def _split(matrix: Int8) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the sums of each pair's positive and of its negative weights."""
    wide = matrix.astype(np.int32)
    return np.maximum(wide, 0).sum(-1), np.minimum(wide, 0).sum(-1)


def worst_pair(matrix: Int8, low: int, high: int) -> Pair:
    """Return the pair that goes farthest beyond int16, or comes nearest to its ends.

    Parameters
    ----------
    matrix : int8 (groups, pairs, channels, 2)
        The weight in pairs.
    low, high : int
        Smallest and largest raw activation.

    Examples
    --------
    >>> worst_pair(np.int8([[[[127, 2]], [[-128, -128]]]]), 0, 255)
    Pair(channel=0, number=1, weights=(-128, -128), activations=(255, 255), sum=-65280)
    """
    up, down = _split(matrix)
    top, bottom = high * up + low * down, low * up + high * down
    beyond = np.maximum(top - HIGHEST, LOWEST - bottom)
    group, index, channel = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    at = (group, index, channel)
    first, second = (int(w) for w in matrix[at])
    rises = bool(top[at] - HIGHEST >= LOWEST - bottom[at])
    a, b = ((high if (w > 0) == rises else low) for w in (first, second))
    total = a * first + b * second
    return Pair(
        int(group) * matrix.shape[2] + int(channel), int(index), (first, second), (a, b), total
    )


def largest_activation(matrix: Int8, low: int = 0) -> int:
    """Return the largest raw activation with which no pair can saturate, at most 255.

    Examples
    --------
    >>> largest_activation(np.int8([[[[127, 127]]]])), largest_activation(np.int8([[[[9, -9]]]]))
    (129, 255)
    """
    up, down = (part.astype(np.int64) for part in _split(matrix))
    most = np.full(up.shape, 255, np.int64)
    np.minimum(most, (HIGHEST - low * down) // np.maximum(up, 1), out=most, where=up > 0)
    np.minimum(most, (low * up - LOWEST) // np.maximum(-down, 1), out=most, where=down < 0)
    return int(most.min())


# ---- the count


def _count(layer: _Found, data: Tensor, target: Target) -> Count:
    node, weight, window, sums = layer
    x = data if isinstance(data, QTensor) else _quantized(node, data, target)
    in_taps = sums is Sums.PAIRED_IN_TAPS
    matrix = weight.pairs(in_taps)
    groups, pairs, channels, _ = matrix.shape
    counts = np.zeros(2, np.int64)
    rows: list[npt.NDArray[Any]] = []
    if window is None:
        feed = np.ascontiguousarray(x.int_repr).reshape(-1, x.shape[-1])
        rows = [np.pad(feed, ((0, 0), (0, feed.shape[1] % 2)))]
    else:
        fill = 0 if sums.leaves_out_padding else int(x.zero_point)
        rows = [seen_rows(image, weight.layout, window, fill, in_taps) for image in x.int_repr]
    outputs = sum(part.shape[0] for part in rows) * groups * channels
    if sums is not Sums.EXACT:
        for part in rows:
            flat = np.ascontiguousarray(part).reshape(-1)
            count_saturated(flat, matrix.reshape(-1), groups, pairs, channels, counts)
    return Count(int(counts[0]), outputs * pairs, int(counts[1]), outputs)


def _quantized(node: Node, x: npt.NDArray[Any], target: Target) -> QTensor:
    """Return the input of a dynamic layer as it is quantized."""
    attributes: dict[str, Any] = dict(node.attributes)
    if "X_scale" in attributes:
        scale, zero_point = float(attributes["X_scale"]), int(attributes["X_zero_point"])
        q = requantize.quantize_as_fbgemm(x, scale, zero_point)
    elif "linear" in node.op:
        form = requantize.stage_for(node.op, requantize.LINEAR_DYNAMIC, target)
        reduced = bool(attributes["reduce_range"]) and form.reduces_range
        scale, zero_point = qparams_of(x, quint8, reduced)
        q = form.quantize(x, scale, zero_point)
    else:
        return quantize_per_tensor_dynamic.reference(x, quint8, bool(attributes["reduce_range"]))
    return QTensor(np.asarray(q, np.uint8), scale, zero_point)
