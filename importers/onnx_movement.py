"""Rules of operators that make, move, select or convert elements, and of shapes."""

from __future__ import annotations

import numpy as np

from refquant.importers.onnx_builder import Constant, Known, OnnxBuilder, Rule
from refquant.ir.errors import VerifyError


def _constant(b: OnnxBuilder) -> Constant:
    given = {name: x for name, x in b.node.attributes.items() if x is not None}
    if len(given) != 1:
        raise VerifyError(f"expected one attribute that holds the value, got {len(given)}")
    ((name, value),) = given.items()
    b.only("string" not in name, "a constant of strings")
    if "_" not in name:
        return b.constant(value)
    return b.constant(value, np.float32 if "float" in name else np.int64)


def _reshape(b: OnnxBuilder, x: Known, shape: Known) -> Known:
    sizes = b.sizes(shape, "the shape")
    if not b.get("allowzero", 0):
        own = x.type.shape
        sizes = tuple(own[i] if n == 0 else n for i, n in enumerate(sizes))
    return b.emit("aten::reshape", x, shape=sizes)


def _shape(b: OnnxBuilder, x: Known) -> Constant:
    sizes = x.type.shape
    return b.shape_constant(sizes[slice(b.get("start", 0), b.get("end"))])


MOVEMENT: dict[str, Rule] = {
    "Constant": _constant,
    "Identity": lambda b, x: x,
    "Reshape": _reshape,
    "Shape": _shape,
}
