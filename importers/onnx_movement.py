"""Rules of operators that make, move or join elements, and of shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refquant.importers.onnx_builder import (
    Array,
    Constant,
    Known,
    OnnxBuilder,
    Operand,
    Rule,
    check_size,
)
from refquant.importers.onnx_file import element_type
from refquant.importers.onnx_reductions import given_axes, position
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.types import Dim, Size, TensorType, element_count, format_shape
from refquant.kernels.checks import broadcast

_WHOLE = 10**9


def known(x: Known, axis: int) -> int:
    """Return a length that must not depend on the batch."""
    length = x.type.shape[axis]
    if not isinstance(length, int):
        raise UnsupportedError(f"the length of dimension {axis} of {x.type} must be known")
    return length


def lengths(sizes: tuple[Size, ...], what: str) -> tuple[Size, ...]:
    """Return lengths that are not negative."""
    if any(isinstance(n, int) and n < 0 for n in sizes):
        raise VerifyError(f"{what}: a length is negative in {format_shape(sizes)}")
    return sizes


def _constant(b: OnnxBuilder) -> Constant:
    given = {name: x for name, x in b.node.attributes.items() if x is not None}
    if len(given) != 1:
        raise VerifyError(f"expected one attribute that holds the value, got {len(given)}")
    ((name, value),) = given.items()
    b.only("string" not in name, "a constant of strings")
    dtype = None if "_" not in name else np.float32 if "float" in name else np.int64
    return replace(b.constant(value, dtype), stored=True)


def _filled(b: OnnxBuilder, shape: Known) -> Known:
    value: Array = b.get("value", np.zeros(1, np.float32))
    if value.size != 1:
        raise VerifyError(f"the value must be one element, got {list(value.shape)}")
    sizes = lengths(b.sizes(shape, "the shape"), "the shape")
    return b.emit("aten::expand", b.constant(value.reshape(())), size=sizes)


def _eye(b: OnnxBuilder, x: Known) -> Constant:
    if x.type.rank != 2:
        raise VerifyError(f"expected rank 2, got {x.type}")
    code = b.get("dtype")
    dtype = x.type.dtype if code is None else element_type(code, "the result")
    rows, columns = known(x, 0), known(x, 1)
    check_size(TensorType(dtype, (rows, columns)))
    limit = rows + columns  # any diagonal beyond is outside
    return b.constant(
        np.eye(rows, columns, min(max(b.get("k", 0), -limit), limit)).astype(dtype.storage)
    )


def _reshape(b: OnnxBuilder, x: Known, shape: Known) -> Known:
    sizes = b.sizes(shape, "the shape")
    if any(isinstance(n, int) and n < -1 for n in sizes):
        raise VerifyError(f"the shape has a negative length: {format_shape(sizes)}")
    if not b.get("allowzero", 0):
        own = x.type.shape
        if 0 in sizes[len(own) :]:
            at = sizes.index(0, len(own))
            raise VerifyError(f"0 at {at} stands for a length that {x.type} has not")
        sizes = tuple(own[i] if n == 0 else n for i, n in enumerate(sizes))
    return b.emit("aten::reshape", x, shape=sizes)


def _flatten(b: OnnxBuilder, x: Known) -> Known:
    rank, axis = x.type.rank, b.get("axis", 1)
    if not -rank <= axis <= rank:
        raise VerifyError(f"axis {axis} is outside a tensor of rank {rank}")
    at = axis + rank if axis < 0 else axis
    if at == 1 and rank > 1:
        return b.emit("aten::flatten", x, start_dim=1)
    sides = x.type.shape[:at], x.type.shape[at:]
    return b.emit("aten::reshape", x, shape=tuple(map(element_count, sides)))


def _shape(b: OnnxBuilder, x: Known) -> Constant:
    sizes = x.type.shape
    return b.shape_constant(sizes[slice(b.get("start", 0), b.get("end"))])


def _size(b: OnnxBuilder, x: Known) -> Constant:
    count = b.shape_constant((element_count(x.type.shape),))
    return Constant(count.name, count.data.reshape(()))


def _squeeze(b: OnnxBuilder, x: Known, operand: Operand = None) -> Known:
    given = given_axes(b, operand)
    if given is None:
        axes = [d for d, n in enumerate(x.type.shape) if n == 1]
    else:
        axes = sorted({position(axis, x.type.rank) for axis in given})
    for axis in reversed(axes):
        if x.type.shape[axis] != 1:
            raise VerifyError(f"dimension {axis} of {x.type} is not 1")
        x = b.emit("aten::squeeze", x, dim=axis)
    return x


def _unsqueeze(b: OnnxBuilder, x: Known, operand: Operand = None) -> Known:
    given = given_axes(b, operand)
    if given is None:
        raise VerifyError("axes are missing")
    rank = x.type.rank + len(given)
    axes = {position(axis, rank) for axis in given}
    if len(axes) != len(given):
        raise VerifyError(f"axes {list(given)} name a dimension twice")
    for axis in sorted(axes):
        x = b.emit("aten::unsqueeze", x, dim=axis)
    return x


def _transpose(b: OnnxBuilder, x: Known) -> Known:
    order = b.get("perm")
    if order is None:
        order = tuple(reversed(range(x.type.rank)))
    return b.emit("aten::permute", x, dims=order)


def _expand(b: OnnxBuilder, x: Known, shape: Known) -> Known:
    sizes = lengths(b.sizes(shape, "the shape"), "the shape")
    wanted = broadcast("the shape", x.type.shape, sizes)
    return x if wanted == x.type.shape else b.emit("aten::expand", x, size=wanted)


def _tile(b: OnnxBuilder, x: Known, repeats: Known) -> Known:
    counts = lengths(b.sizes(repeats, "the repeats"), "the repeats")
    if len(counts) != x.type.rank:
        raise VerifyError(f"{len(counts)} repeats for {x.type}")
    return b.emit("aten::repeat", x, repeats=counts)


def _concat(b: OnnxBuilder, *parts: Known) -> Known:
    ranks = {x.type.rank: None for x in parts}
    if len(ranks) > 1:
        raise VerifyError(f"operands of rank {' and '.join(map(str, ranks))}")
    axis = position(b.get("axis", 1), parts[0].type.rank)
    return b.emit("aten::cat", *parts, dim=axis)


def _split(b: OnnxBuilder, x: Known, sizes: Operand = None) -> list[Operand]:
    axis = position(b.get("axis", 0), x.type.rank)
    parts = b.get("split") if sizes is None else b.integers(sizes, "the lengths")
    if parts is None:
        count = len(b.node.outputs)
        if b.get("num_outputs", count) != count:
            raise VerifyError(f"{count} results, expected {b.get('num_outputs')}")
        if count == 1:
            return [x]
        length = known(x, axis)
        each = -(-length // count)
        parts = (*(each,) * (count - 1), length - each * (count - 1))
        if parts[-1] < 0 or (b.version < 18 and parts[-1] != each):
            raise VerifyError(f"dimension {axis} of {x.type} has no {count} parts")
    if any(n < 0 for n in parts):
        raise VerifyError(f"a length is negative in {list(parts)}")
    return list(b.emit_all("aten::split_with_sizes", x, split_sizes=tuple(parts), dim=axis))


def _slice(b: OnnxBuilder, x: Known, *operands: Operand) -> Known:
    bounds: list[Any] = [b.get(name) for name in ("starts", "ends", "axes")]
    if operands:
        names = ("starts", "ends", "axes", "steps")
        bounds = [
            None if operand is None else b.sizes(operand, name)
            for name, operand in zip(names, operands, strict=False)
        ]
    starts, ends, axes, steps = (*bounds, None, None)[:4]
    axes = range(len(starts)) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        counts = f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes, {len(steps)} steps"
        raise VerifyError(counts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _sliced(b, x, position(axis, x.type.rank), start, end, step)
    return x


def _sliced(b: OnnxBuilder, x: Known, axis: int, start: Size, end: Size, step: int) -> Known:
    length = x.type.shape[axis]
    if step == 0:
        raise VerifyError("a step is 0")
    if start == 0 and step == 1 and (end == length or (isinstance(end, int) and end >= _WHOLE)):
        return x
    if isinstance(start, Dim) or isinstance(end, Dim) or not isinstance(length, int):
        raise UnsupportedError(f"a slice from {start} to {end} of dimension {axis} of {x.type}")
    chosen = range(length)[start:end:step]
    if step < 0:
        x = b.emit("aten::flip", x, dims=(axis,))
        chosen = range(length - 1 - chosen.start, length - 1 - chosen.stop, -step)
    if chosen == range(length):
        return x
    stop = chosen.start + len(chosen) * chosen.step if chosen else chosen.start
    return b.emit(
        "aten::slice", x, dim=axis, start=chosen.start, end=min(stop, length), step=chosen.step
    )


def _pad(
    b: OnnxBuilder,
    x: Known,
    pads: Operand = None,
    value: Operand = None,
    axes: Operand = None,
) -> Known:
    rank, mode = x.type.rank, b.get("mode", "constant")
    around = b.get("pads") if b.version < 11 else b.integers(pads, "the pads")
    fill = b.get("value", 0.0) if b.version < 11 else 0
    if value is not None:
        fill = b.array(value, "the value").reshape(-1)[0].item()
    given = range(rank) if axes is None else b.integers(axes, "axes")
    places = [position(axis, rank) for axis in given]
    if len(around) != 2 * len(places):
        raise VerifyError(f"{len(around)} pads for {len(places)} dimensions of {x.type}")
    sides = dict(zip(places, zip(around, around[len(places) :], strict=False), strict=True))
    if mode == "constant":
        last_first = [sides.get(axis, (0, 0)) for axis in reversed(range(rank))]
        return b.emit(
            "aten::pad", x, pad=tuple(n for side in last_first for n in side), value=fill
        )
    if mode not in ("reflect", "edge", "wrap"):
        raise VerifyError(f"mode must be constant, reflect, edge or wrap, got {mode!r}")
    for axis, side in sides.items():
        if side != (0, 0):
            x = b.emit("aten::index_select", x, _around(b, x, axis, side, mode), dim=axis)
    return x


def _around(b: OnnxBuilder, x: Known, axis: int, side: tuple[int, int], mode: str) -> Constant:
    """Return which entry of a dimension stands at each place of the padded one."""
    length = known(x, axis)
    cut = tuple(max(0, -n) for n in side)
    grown = [max(0, n) for n in side]
    size = length - sum(cut)
    if size < 0 or (size == 0 and any(grown)):
        raise VerifyError(f"pads {side} of dimension {axis} of {x.type}")
    shape = list(x.type.shape)
    shape[axis] = size + sum(grown)
    check_size(TensorType(x.type.dtype, tuple(shape)))
    entries = np.arange(cut[0], length - cut[1])
    return b.constant(np.pad(entries, grown, mode))  # type: ignore[call-overload]


def _depth_to_space(b: OnnxBuilder, x: Known) -> Known:
    if x.type.rank != 4:
        raise VerifyError(f"expected rank 4, got {x.type}")
    n, channels, height, width = x.type.shape
    s, mode = b.get("blocksize"), b.get("mode", "DCR")
    depth = known(x, 1) // (s * s) if s > 0 else 0
    if s < 1 or channels != depth * s * s or mode not in ("DCR", "CRD"):
        raise VerifyError(f"blocksize {s} and mode {mode!r} of {x.type}")
    shape, order = (n, s, s, depth, height, width), (0, 3, 4, 1, 5, 2)
    if mode == "CRD":
        shape, order = (n, depth, s, s, height, width), (0, 1, 4, 2, 5, 3)
    blocks = b.emit("aten::permute", b.emit("aten::reshape", x, shape=shape), dims=order)
    return b.emit("aten::reshape", blocks, shape=(n, depth, height * s, width * s))


def _space_to_depth(b: OnnxBuilder, x: Known) -> Known:
    if x.type.rank != 4:
        raise VerifyError(f"expected rank 4, got {x.type}")
    n, channels, *_ = x.type.shape
    s, mode = b.get("blocksize"), b.get("mode", "DCR")
    if s < 1 or known(x, 2) % s or known(x, 3) % s or mode not in ("DCR", "CRD"):
        raise VerifyError(f"blocksize {s} and mode {mode!r} of {x.type}")
    high, wide = known(x, 2) // s, known(x, 3) // s
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    blocks = b.emit("aten::reshape", x, shape=(n, channels, high, s, wide, s))
    blocks = b.emit("aten::permute", blocks, dims=order)
    return b.emit("aten::reshape", blocks, shape=(n, channels * s * s, high, wide))


def _triangle(b: OnnxBuilder, x: Known, k: Operand = None) -> Known:
    diagonal = 0 if k is None else int(b.array(k, "k").reshape(()))
    return b.emit("aten::triu" if b.get("upper", 1) else "aten::tril", x, diagonal=diagonal)


def _reverse(b: OnnxBuilder, x: Known, counts: Known) -> Known:
    axes = {"batch_axis": b.get("batch_axis", 1), "time_axis": b.get("time_axis", 0)}
    return b.emit("onnx::ReverseSequence", x, counts, **axes)


MOVEMENT: dict[str, Rule] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye,
    "Flatten": _flatten,
    "Identity": lambda b, x: x,
    "Pad": _pad,
    "Reshape": _reshape,
    "ReverseSequence": _reverse,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}
