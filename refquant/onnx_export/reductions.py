"""Float operations on whole axes, selections and norms as ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Node
from refquant.onnx_export.writer import Writer

Write = Callable[[Writer, Node], str | list[str]]


def reduction(op: str) -> Write:
    """Return the writer of a reduction, whose axes are an operand in ONNX."""

    def write(w: Writer, node: Node) -> str:
        how: dict[str, Any] = dict(node.attributes)
        dim = how.get("dim")
        axes = (dim,) if isinstance(dim, int) else dim
        which = w.constant(np.array(axes, np.int64), "axes") if axes else ""
        keep = int(bool(how.get("keepdim", False)))
        return w.add(op, w.operand(node.inputs[0]), which, keepdims=keep)

    return write


def _norm(w: Writer, node: Node) -> str:
    order = node.attributes.get("ord", 2.0)
    if order not in (1.0, 2.0):
        raise UnsupportedError(f"a norm of order {order}")
    return str(reduction("ReduceL1" if order == 1.0 else "ReduceL2")(w, node))


def _argument(op: str) -> Write:
    def write(w: Writer, node: Node) -> str:
        dim, keep = node.attributes.get("dim"), int(bool(node.attributes.get("keepdim", False)))
        x = w.operand(node.inputs[0])
        if dim is None:
            x, dim, keep = w.add("Reshape", x, w.constant(np.array([-1], np.int64))), 0, 0
        return w.add(op, x, axis=dim, keepdims=keep)

    return write


def _cumsum(w: Writer, node: Node) -> str:
    axis = w.constant(np.array(node.attributes["dim"], np.int64))
    return w.add("CumSum", w.operand(node.inputs[0]), axis)


def _topk(w: Writer, node: Node) -> list[str]:
    how: dict[str, Any] = dict(node.attributes)
    count = w.constant(np.array([how["k"]], np.int64))
    return w.add_all(
        "TopK",
        (w.operand(node.inputs[0]), count),
        2,
        axis=how.get("dim", -1),
        largest=int(how.get("largest", True)),
        sorted=int(how.get("sorted", True)),
    )


# ---- selection


def _index_select(w: Writer, node: Node) -> str:
    x, index = map(w.operand, node.inputs)
    return w.add("Gather", x, index, axis=node.attributes["dim"])


def _index(w: Writer, node: Node) -> str:
    x, *indices = node.inputs
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        raise UnsupportedError(f"{len(given)} index tensors at once")
    ((axis, index),) = given
    return w.add("Gather", w.operand(x), w.operand(index), axis=axis)


def _gather(w: Writer, node: Node) -> str:
    x, index = map(w.operand, node.inputs)
    return w.add("GatherElements", x, index, axis=node.attributes["dim"])


def _where(w: Writer, node: Node) -> str:
    return w.add("Where", *map(w.operand, node.inputs))


def _masked_fill(w: Writer, node: Node) -> str:
    x, mask = node.inputs
    assert x is not None
    value = w.constant(np.array(node.attributes["value"], x.type.dtype.storage))
    return w.add("Where", w.operand(mask), value, w.operand(x))


def _triangle(upper: int) -> Write:
    def write(w: Writer, node: Node) -> str:
        diagonal = w.constant(np.array(node.attributes.get("diagonal", 0), np.int64))
        return w.add("Trilu", w.operand(node.inputs[0]), diagonal, upper=upper)

    return write


def _repeat(w: Writer, node: Node) -> str:
    x = node.inputs[0]
    assert x is not None
    times: Any = node.attributes["repeats"]
    extra = len(times) - x.type.rank
    data = w.operand(x)
    if extra:
        ones = w.constant(np.arange(extra, dtype=np.int64))
        data = w.add("Unsqueeze", data, ones)
    return w.add("Tile", data, w.constant(np.array(times, np.int64)))


def _pixel_shuffle(w: Writer, node: Node) -> str:
    size = node.attributes["upscale_factor"]
    return w.add("DepthToSpace", w.operand(node.inputs[0]), blocksize=size, mode="CRD")


# ---- functions of several steps


def _rsqrt(w: Writer, node: Node) -> str:
    return w.add("Reciprocal", w.add("Sqrt", w.operand(node.inputs[0])))


def _square(w: Writer, node: Node) -> str:
    x = w.operand(node.inputs[0])
    return w.add("Mul", x, x)


def _different(w: Writer, node: Node) -> str:
    return w.add("Not", w.add("Equal", *map(w.operand, node.inputs)))


def _instance_norm(w: Writer, node: Node) -> str:
    x, weight, bias, *_ = node.inputs
    assert x is not None
    if not node.attributes["use_input_stats"]:
        raise UnsupportedError("instance_norm by running statistics")
    channels = x.type.shape[1]
    scale = w.operand(weight) if weight else w.constant(np.ones(channels, np.float32))
    shift = w.operand(bias) if bias else w.constant(np.zeros(channels, np.float32))
    operands = (w.operand(x), scale, shift)
    return w.add("InstanceNormalization", *operands, epsilon=node.attributes["eps"])


def _group_norm(w: Writer, node: Node) -> str:
    x, weight, bias = (*node.inputs, None, None)[:3]
    assert x is not None
    groups: Any = node.attributes["num_groups"]
    split = w.add("Reshape", w.operand(x), w.constant(np.array([0, groups, -1], np.int64)))
    ones, zeros = (w.constant(np.full(groups, n, np.float32)) for n in (1, 0))
    eps = node.attributes.get("eps", 1e-5)
    y = w.add("InstanceNormalization", split, ones, zeros, epsilon=eps)
    y = w.add("Reshape", y, w.shape(x.type.shape))
    for op, value in (("Mul", weight), ("Add", bias)):
        if value is not None:
            data = w.data(value)
            if not isinstance(data, np.ndarray):
                raise UnsupportedError("group_norm with parameters that are computed")
            y = w.add(op, y, w.constant(data.reshape(-1, *(1,) * (x.type.rank - 2))))
    return y


def _attention(w: Writer, node: Node) -> str:
    query, key, value, mask = (*node.inputs, None)[:4]
    assert query is not None
    assert key is not None
    how: dict[str, Any] = dict(node.attributes)
    if how.get("is_causal") or (mask is not None and mask.type.dtype.name != "float32"):
        raise UnsupportedError("attention with a causal or a bool mask")
    rank, width = key.type.rank, query.type.shape[-1]
    order = (*range(rank - 2), rank - 1, rank - 2)
    scale = how.get("scale") or 1 / sqrt(int(width))  # type: ignore[arg-type]
    scores = w.add("MatMul", w.operand(query), w.add("Transpose", w.operand(key), perm=order))
    scores = w.add("Mul", scores, w.constant(np.float32(scale)))
    if mask is not None:
        scores = w.add("Add", scores, w.operand(mask))
    return w.add("MatMul", w.add("Softmax", scores, axis=-1), w.operand(value))


REDUCTIONS: dict[str, Write] = {
    "aten::amax": reduction("ReduceMax"),
    "aten::amin": reduction("ReduceMin"),
    "aten::argmax": _argument("ArgMax"),
    "aten::argmin": _argument("ArgMin"),
    "aten::cumsum": _cumsum,
    "aten::gather": _gather,
    "aten::group_norm": _group_norm,
    "aten::index": _index,
    "aten::index_select": _index_select,
    "aten::instance_norm": _instance_norm,
    "aten::linalg_vector_norm": _norm,
    "aten::masked_fill.Scalar": _masked_fill,
    "aten::mean": reduction("ReduceMean"),
    "aten::ne": _different,
    "aten::pixel_shuffle": _pixel_shuffle,
    "aten::repeat": _repeat,
    "aten::rsqrt": _rsqrt,
    "aten::scaled_dot_product_attention": _attention,
    "aten::square": _square,
    "aten::sum": reduction("ReduceSum"),
    "aten::topk": _topk,
    "aten::tril": _triangle(0),
    "aten::triu": _triangle(1),
    "aten::where": _where,
}
# These choose or move, and round nothing.
CHOOSE = frozenset(
    f"aten::{name}"
    for name in (
        *("amax", "amin", "argmax", "argmin", "gather", "index", "index_select", "ne", "repeat"),
        *("masked_fill.Scalar", "pixel_shuffle", "tril", "triu", "where"),
    )
)
