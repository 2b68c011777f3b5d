"""``quantized::linear_dynamic`` and ``linear_relu_dynamic``: float32 rows, int8 weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, qint8, quint8
from refquant.kernels import checks, quantize_per_tensor, requantize, requantize_jit
from refquant.kernels.accumulate import Sums
from refquant.kernels.engines import check_symmetric
from refquant.kernels.min_max import min_max_compiled
from refquant.kernels.multiply import linear_sums, matrix_product
from refquant.kernels.packing import Layout, PackedWeight
from refquant.kernels.quantize_per_tensor_dynamic import qparams_of
from refquant.kernels.quantized_linear import check_operands, sums, sums_of
from refquant.kernels.requantize import Dynamic

F32 = npt.NDArray[np.float32]


def reference(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    reduce_range: bool,
    target: Target = Target(),
) -> F32:
    r"""Quantize the input by its own range, multiply integers, return float32.

    .. math:: y = \mathrm{fma}(\mathrm{float}(acc), s_x s_w, bias)

    ``x`` becomes quint8 as by ``aten::quantize_per_tensor_dynamic`` (one scale for the whole
    tensor, chosen in float64, so each row's result depends on all rows). ``acc`` is the exact
    int32 sum :math:`\sum_k (x_k - z_x)(w_k - z_w)`; :math:`s_x s_w` is a float32 product of
    rounded scales. Product and bias are added with one rounding; without a bias it is the plain
    product.

    qnnpack rounds the product and then the sum, and ignores ``reduce_range``. onednn adds the
    zero point to ``x / s_x`` in float32 before it rounds, and computes ``float(acc) * s_x' * s_w'
    + bias`` with a rounding at each step and the scales of its ``quantized::linear``.

    Without VNNI pairs of products saturate as in ``quantized::linear``; not with
    ``reduce_range``, for two products of 128 fit.

    Parameters
    ----------
    x : float32 (..., K), rank >= 2
        Real values, all finite.
    weight : qint8 (N, K)
        Quantized per tensor, or per channel along axis 0; zero points may differ from 0 (under
        onednn they must be 0).
    bias : float32 (N,) or None
        Added to the result.
    reduce_range : bool
        Quantize ``x`` to 0..127 instead of 0..255.

    Returns
    -------
    float32 (..., N), contiguous

    Raises
    ------
    VerifyError
        If shapes or dtypes do not fit, or ``x`` holds NaN or infinity.
    UnsupportedError
        Under onednn, if a weight zero point is not 0.

    Notes
    -----
    Engines fbgemm and x86 are the same.

    Examples
    --------
    >>> w = QTensor(np.int8([[1, 2], [-3, 4]]), 0.5, 0, None, qint8)
    >>> reference(np.float32([[0.0, 255.0]]), w, np.float32([1, 2]), False)
    array([[256., 512.]], dtype=float32)
    """
    form = _form(weight, target)
    channels = weight.shape[0]
    y = np.empty((*x.shape[:-1], channels), np.float32)
    if x.size == 0:
        return y
    scale, zero_point = qparams_of(x, quint8, reduce_range and form.reduces_range)
    constants = form.constants(scale, weight.scale, 1.0, bias, channels)
    q = QTensor(form.quantize(x, scale, zero_point), scale, zero_point)
    results = y.reshape(-1, channels)
    for part, total in sums(q, weight, target):
        results[part] = form.finish(total, constants)
    return y


def _form(weight: QTensor, target: Target) -> Dynamic:
    form = requantize.stage_for("linear_dynamic", requantize.LINEAR_DYNAMIC, target)
    if target.engine is Engine.ONEDNN:
        check_symmetric("linear_dynamic", weight)
    return form


def reference_relu(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    reduce_range: bool,
    target: Target = Target(),
) -> F32:
    """Do :func:`reference`, then replace negative results by 0."""
    return np.maximum(reference(x, weight, bias, reduce_range, target), np.float32(0))


def infer(
    x: TensorType, weight: TensorType, bias: TensorType | None, reduce_range: bool
) -> TensorType:
    """Check the operands; the last size becomes that of the weight."""
    checks.is_float32("linear_dynamic", x)
    return check_operands("linear_dynamic", x, weight, bias)


def pack(weight: QTensor, **_attributes: Any) -> PackedWeight:
    """Arrange the weight for :func:`kernel`."""
    return PackedWeight.of(weight, Layout())


def kernel(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    reduce_range: bool,
    target: Target = Target(),
) -> F32:
    """Compute :func:`reference` with the compiled tile."""
    form = _form(weight, target)
    packed = pack(weight)
    channels, depth = weight.shape
    y = np.empty((*x.shape[:-1], channels), np.float32)
    if x.size == 0:
        return y
    rows = np.ascontiguousarray(x)
    reduced = reduce_range and form.reduces_range
    scale, zero_point = qparams_of(rows, quint8, reduced, min_max_compiled)
    q = QUANTIZE[form.quantize](rows, scale, zero_point)
    if sums_of(q, target) is not Sums.EXACT:
        constants = form.constants(scale, weight.scale, 1.0, bias, channels)
        y[...] = form.finish(linear_sums(q, packed, sums_of(q, target)), constants)
        return y
    addend = None if form.rounds_each else bias
    lanes = packed.lanes_of_any_input(form.constants, scale, int(q.zero_point), addend)
    matrix_product(q.int_repr.reshape(-1, depth), packed, lanes, "real", requantize.UNREAD, y)
    if form.rounds_each:
        factor = form.constants(scale, weight.scale, 1.0, bias, channels).factor
        if np.any(factor != 1):
            y *= factor
        if bias is not None:
            y += bias
    return y


def _quantize_as_fbgemm(x: F32, scale: float, zero_point: int) -> QTensor:
    return quantize_per_tensor.kernel(x, scale, zero_point, quint8)


def _quantize_as_onednn(x: F32, scale: float, zero_point: int) -> QTensor:
    q = np.empty(x.shape, np.uint8)
    inverse = requantize.onednn_inverse(scale)
    requantize_jit.quantize_before(x.reshape(-1), inverse, np.float32(zero_point), q.reshape(-1))
    return QTensor(q, scale, zero_point)


# The compiled twin of each rounding of the input.
QUANTIZE: dict[Callable[..., Any], Callable[[F32, float, int], QTensor]] = {
    requantize.quantize_as_fbgemm: _quantize_as_fbgemm,
    requantize.quantize_as_onednn: _quantize_as_onednn,
}


def kernel_relu(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    reduce_range: bool,
    target: Target = Target(),
) -> F32:
    """Compute :func:`reference_relu` with the compiled tile."""
    y = kernel(x, weight, bias, reduce_range, target)
    return np.maximum(y, np.float32(0), out=y)


_ROWS = np.array([[1, 2], [-3, 4]], np.int8)
_WEIGHT = QTensor(_ROWS, 0.5, 0, None, qint8)
_PER_CHANNEL = QTensor(_ROWS, np.array([0.5, 2.0]), np.array([1, 0]), 0, qint8)
_BUT_ONEDNN = tuple(e for e in requantize.LINEAR_DYNAMIC if e is not Engine.ONEDNN)
_X = np.array([[0, 255], [255, 1]], np.float32)
_BIAS = np.array([1, 2], np.float32)


def _case(
    name: str,
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    expected: Any,
    why: str,
    engines: tuple[Engine, ...] = (),
) -> Case:
    result = np.asarray(expected, np.float32)
    return Case(name, (x, weight, bias), {"reduce_range": False}, result, why, engines)


_EACH = [[127.5, 2040], [0.5, -1522]]
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qlinear_dynamic.cpp"
    "::PackedLinearWeight::apply_dynamic",
)

_DYNAMIC = (
    Op(
        name="quantized::linear_dynamic",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(requantize.LINEAR_DYNAMIC, kernel),
        pack=pack,
        source=_SOURCE,
        cases=(
            _case("bias", _X, _WEIGHT, _BIAS, [[256, 512], [129.5, -378.5]], "scale 1, zero 0"),
            _case("channels", _X, _PER_CHANNEL, None, _EACH, "one scale each", _BUT_ONEDNN),
            _case("zeros", 0 * _X, _WEIGHT, _BIAS, [[1, 2], [1, 2]], "all zero has scale 0.1"),
            _case("no_rows", _X[:0], _WEIGHT, _BIAS, np.zeros((0, 2)), "empty batch"),
        ),
    ),
    Op(
        name="quantized::linear_relu_dynamic",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(requantize.LINEAR_DYNAMIC, kernel_relu),
        pack=pack,
        source=_SOURCE,
        cases=(_case("negative", _X, _WEIGHT, _BIAS, [[256, 512], [129.5, 0]], "becomes 0"),),
    ),
)

OPS = (*_DYNAMIC, replace(_DYNAMIC[0], name="_quantized::linear_dynamic"))
