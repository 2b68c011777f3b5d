"""``quantized::linear`` and ``linear_relu``: 8-bit rows times an int8 weight, to 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.prepared import Operand
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.types import QParams, TensorType, format_shape, qint8, quint8
from refquant.kernels import checks, layer, requantize
from refquant.kernels.accumulate import (
    BLOCK,
    Sums,
    blocks,
    dot,
    dot_saturating,
    weight_zero_points,
)
from refquant.kernels.engines import check_symmetric
from refquant.kernels.layer import Layer
from refquant.kernels.multiply import as_unsigned, linear_product
from refquant.kernels.packing import Layout, PackedWeight
from refquant.kernels.requantize import Rounding, Stage

F32 = npt.NDArray[np.float32]


def reference(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    r"""Multiply by the transposed weight, add the bias and requantise.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(v \cdot (s_x s_w / s)) + z, low, 255)

    where :math:`v` is the exact integer sum
    :math:`\sum_k (x_k - z_x)(w_k - z_w)`, converted to float32, plus the bias in units of
    :math:`a = s_x s_w`:

    * per tensor weight: ``v = fma(bias, 1 / a, float(sum))``, one rounding;
    * per channel weight: ``v = float(sum) + bias / a``, two roundings.

    ``a``, ``1 / a`` (divided in float64, then rounded), ``a / s`` and the product with ``v`` are
    each rounded to float32; ties go to even *before* the zero point is added. The bias stays
    float32, it is never turned into integers. ``low`` is 0, with relu the zero point.

    **qnnpack**: ``v = float(sum + b)`` with the int32 bias ``b = rint(bias * (1 / a))``, which
    saturates (``a`` here multiplied in float64, then rounded), and ``a * (1 / s)`` instead of
    the quotient.

    **onednn**: the real value is ``float(sum) * s_x' * s_w' + bias``, each step rounded to
    float32, and

    .. math:: q = \mathrm{rint}(\mathrm{clamp}(real \cdot (1 / s') + z, low, 255))

    so ties are met *after* the zero point was added in float32, and what is far too large gives
    255. Scales with a prime were inverted twice: ``s' = 1 / f32(1 / s)`` with ``1 / s`` in
    float64, and ``1 / f32(1 / f32(s_w))`` for a weight quantized per channel. A qint8 input is
    multiplied by another kernel of oneDNN, which divides by ``s'`` instead; the result is qint8.

    **Without VNNI** (``target.isa`` avx512 or avx2; not qnnpack) products of raw bytes are added
    in pairs of neighbours along K that saturate to int16, and the zero points are taken out
    afterwards; see ``accumulate.dot_saturating``. Of a qint8 input, moved by 128, they saturate
    under avx2 and only if its zero point is 0. Under avx2 oneDNN multiplies by its GEMM kernel:
    ``float(sum) * (s_x' * s_w') + bias``, then by ``1 / s'`` for both dtypes.

    Parameters
    ----------
    x : quint8 (..., K), rank >= 2
        Quantized per tensor; under onednn also qint8.
    weight : qint8 (N, K)
        Quantized per tensor, or per channel along axis 0; zero points may differ from 0 (under
        onednn they must be 0).
    bias : float32 (N,) or None
        Added before rounding.
    scale, zero_point : float, int
        Quantization parameters of the result.

    Returns
    -------
    QTensor, dtype of ``x``, (..., N), contiguous
        Where ``|v * a / s|`` reaches 2**31 the conversion to int32 overflows and gives ``low``
        (not under onednn).

    Raises
    ------
    VerifyError
        If shapes, dtypes or quantization parameters do not fit.
    UnsupportedError
        If the engine does not take the dtype or the weight's zero points.

    Notes
    -----
    Engines fbgemm and x86 are the same. torch's qnnpack keeps the multiplier of its first call
    while the input scale stays the same, even if the output scale changes; here every call is
    a first one.

    Examples
    --------
    >>> x = QTensor(np.uint8([[3, 5]]), 0.5, 1)
    >>> w = QTensor(np.int8([[1, 2], [-3, 4]]), 0.5, 0, None, qint8)
    >>> reference(x, w, np.float32([0.125, 0.25]), 1.0, 10).int_repr
    array([[13, 13]], dtype=uint8)
    """
    return _exact(x, weight, bias, _rounding(x, scale, zero_point), target)


def reference_relu(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Do :func:`reference` with ``low = zero_point``: negative results become real 0."""
    return _exact(x, weight, bias, _rounding(x, scale, zero_point, relu=True), target)


def _rounding(x: QTensor, scale: float, zero_point: int, relu: bool = False) -> Rounding:
    low, high = x.dtype.limits
    return Rounding(scale, zero_point, zero_point if relu else low, high)


def _exact(
    x: QTensor, weight: QTensor, bias: F32 | None, rounding: Rounding, target: Target
) -> QTensor:
    chosen = stage("linear", x, weight, target)
    channels = weight.shape[0]
    constants = chosen.constants(float(x.scale), weight.scale, rounding.scale, bias, channels)
    q = np.empty((*x.shape[:-1], channels), x.int_repr.dtype)
    rows = q.reshape(-1, channels)
    for part, total in sums(x, weight, target):
        rows[part] = chosen.finish(total, constants, rounding)
    return QTensor(q, rounding.scale, rounding.zero_point, None, x.dtype)


def sums(
    x: QTensor, weight: QTensor, target: Target
) -> Iterator[tuple[slice, npt.NDArray[np.int32]]]:
    """Yield some rows at a time with their sums."""
    channels, depth = weight.shape
    factor, zero = weight.int_repr[None], weight_zero_points(weight, channels)
    multiply = dot if sums_of(x, target) is Sums.EXACT else dot_saturating
    x = as_unsigned(x)  # what saturates are products of unsigned bytes
    rows = x.int_repr.reshape(-1, 1, depth)
    for part in blocks(rows.shape[0], BLOCK // max(depth, channels, 1)):
        yield part, multiply(rows[part], int(x.zero_point), factor, zero)


def sums_of(x: QTensor, target: Target) -> Sums:
    """Return how products are added; qint8 saturates under AVX2 only, with zero point 0."""
    gemm = target.isa is Isa.AVX2 and int(x.zero_point) == 0
    paired = requantize.saturates(target) and (x.dtype == quint8 or gemm)
    return Sums.PAIRED if paired else Sums.EXACT


def stage(op: str, x: QTensor, weight: QTensor, target: Target) -> Stage:
    """Return the output stage for a dtype of ``x``; refuse what the engine does not take."""
    by_engine = requantize.LINEAR if x.dtype == quint8 else requantize.LINEAR_OF_SIGNED
    if target.engine in requantize.LINEAR and target.engine not in by_engine:
        raise UnsupportedError(f"{op}: engine {target.engine} takes quint8, got {x.dtype}")
    chosen = requantize.stage_for(op, by_engine, target)
    if target.engine is Engine.ONEDNN:
        check_symmetric(op, weight)
    return chosen


def check_weight(op: str, weight: TensorType, rank: int, axis: int = 0) -> None:
    """Check a constant weight: qint8, per tensor or per channel along ``axis``."""
    if weight.dtype != qint8:
        raise VerifyError(f"{op}: weight must be qint8, got {weight.dtype}")
    if weight.qparams is None:
        raise UnsupportedError(f"{op}: a weight quantized at run time is not supported")
    if weight.qparams.axis not in (None, axis):
        raise VerifyError(
            f"{op}: weight must be quantized per tensor or along axis {axis}, got {weight}"
        )
    if weight.rank != rank:
        raise VerifyError(f"{op}: weight must have rank {rank}, got {format_shape(weight.shape)}")


def check_operands(
    op: str, x: TensorType, weight: TensorType, bias: TensorType | None
) -> TensorType:
    """Check the shapes of a linear; return ``x`` with the shape of the result."""
    check_weight(op, weight, 2)
    if x.rank < 2:
        raise VerifyError(f"{op}: input must have rank >= 2, got {format_shape(x.shape)}")
    channels, depth = weight.shape
    if x.shape[-1] != depth:
        raise VerifyError(
            f"{op}: input {format_shape(x.shape)} does not end in the {depth} columns of weight"
        )
    checks.vector(op, bias, channels, "bias")
    return TensorType(x.dtype, (*x.shape[:-1], channels))


def infer(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    scale: float,
    zero_point: int,
) -> TensorType:
    """Check operands and attributes; the last size becomes that of the weight."""
    checks.per_tensor("linear", x, (quint8, qint8))
    result = check_operands("linear", x, weight, bias)
    qparams = checks.output_qparams("linear", x.dtype, scale, zero_point)
    return TensorType(x.dtype, result.shape, qparams)


def pack(weight: QTensor, **_attributes: Any) -> PackedWeight:
    """Arrange the weight for :func:`kernel`."""
    return PackedWeight.of(weight, Layout())


def kernel(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` with the compiled tile."""
    return _tiled(x, weight, bias, _rounding(x, scale, zero_point), target)


def kernel_relu(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference_relu` with the compiled tile."""
    return _tiled(x, weight, bias, _rounding(x, scale, zero_point, relu=True), target)


def _tiled(
    x: QTensor, weight: QTensor, bias: F32 | None, rounding: Rounding, target: Target
) -> QTensor:
    def make(weight: PackedWeight) -> Layer | None:
        return _layer(x, pack(weight), bias, rounding, target)

    run = layer.ready(x, weight, bias, (x.dtype, rounding, target), make)
    if run is not None:
        return run(x)
    chosen = stage("linear", x, weight, target)
    y = linear_product(x, pack(weight), bias, rounding, chosen, sums_of(x, target))
    y = y.view(x.int_repr.dtype)
    return QTensor(y, rounding.scale, rounding.zero_point, None, x.dtype)


def prepare(
    operands: tuple[Operand, ...],
    _attributes: Mapping[str, Any],
    result: TensorType,
    target: Target,
    *,
    relu: bool,
) -> Layer | None:
    """Bind the layer; None where its sums saturate."""
    x, weight, bias = operands
    ready = isinstance(x, TensorType) and isinstance(weight, PackedWeight)
    if not ready or result.rank != 2:  # elsewhere channels-last would mean something else
        return None
    assert isinstance(x, TensorType)
    assert isinstance(weight, PackedWeight)
    scale, zero_point = result.per_tensor()
    rounding = Rounding(scale, zero_point, zero_point if relu else 0)
    return _layer(layer.stand_in(x), weight, bias, rounding, target)


def _layer(
    x: QTensor, weight: PackedWeight, bias: Operand, rounding: Rounding, target: Target
) -> Layer | None:
    if x.dtype != quint8:
        return None
    chosen, way = stage("linear", x, weight, target), sums_of(x, target)
    qparams = QParams(rounding.scale, rounding.zero_point)
    result = TensorType(quint8, (*x.shape[:-1], weight.shape[0]), qparams)
    return layer.prepare(x.type, weight, bias, None, chosen, way, rounding, result, target)


def _case(
    name: str,
    x: Any,
    weight: QTensor,
    bias: Any,
    expected: Any,
    why: str,
    zero_point: int = 10,
    engines: tuple[Engine, ...] = (),
) -> Case:
    rows = QTensor(np.asarray(x, np.uint8), 0.5, 1)
    addend = None if bias is None else np.asarray(bias, np.float32)
    attributes = {"scale": 1.0, "zero_point": zero_point}
    return Case(name, (rows, weight, addend), attributes, expected, why, engines)


_ROWS = np.array([[1, 2], [-3, 4]], np.int8)
_PER_TENSOR = QTensor(_ROWS, 0.5, 0, None, qint8)
_PER_CHANNEL = QTensor(_ROWS, np.array([0.5, 0.25]), np.array([0, 0]), 0, qint8)
_SHIFTED = QTensor(np.array([[1, 2], [-3, -128]], np.int8), 0.5, -128, None, qint8)
_OTHERS = tuple(e for e in requantize.LINEAR if e is not Engine.ONEDNN)
_ONEDNN = (Engine.ONEDNN,)
_HUGE = QTensor(np.full((1, 64), 127, np.int8), 1e5, 0, None, qint8)

_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qlinear.cpp::PackedLinearWeight::apply",
    "pytorch/FBGEMM/src/QuantUtilsAvx512.cc::requantizeOutputProcessingAvx512",
)

_STATIC = (
    Op(
        name="quantized::linear",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(requantize.LINEAR, kernel),
        pack=pack,
        prepare=partial(prepare, relu=False),
        source=_SOURCE,
        cases=(
            _case("ties", [[3, 3]], _PER_TENSOR, [0, 0], [[12, 10]], "1.5 and 0.5 go to even"),
            _case("odd", [[3, 3]], _PER_TENSOR, None, [[13, 11]], "1.5 to 2, + 11", 11, _OTHERS),
            _case("channels", [[3, 5]], _PER_CHANNEL, [0.5, 1], [[13, 12]], "a scale per row"),
            _case(
                "shifted",
                [[3, 0]],
                _SHIFTED,
                None,
                [[42, 72]],
                "weight zero point -128",
                10,
                _OTHERS,
            ),
            _case(
                "overflow", [[255] * 64], _HUGE, None, [[0]], "2**31 is the bottom", 10, _OTHERS
            ),
            _case("late", [[3, 3]], _PER_TENSOR, None, [[12, 12]], "1.5 + 11", 11, _ONEDNN),
            _case("large", [[255] * 64], _HUGE, None, [[255]], "the top", 10, _ONEDNN),
            _case("no_rows", np.zeros((0, 2)), _PER_TENSOR, None, np.zeros((0, 2)), "empty"),
        ),
    ),
    Op(
        name="quantized::linear_relu",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(requantize.LINEAR, kernel_relu),
        pack=pack,
        prepare=partial(prepare, relu=True),
        source=_SOURCE,
        cases=(
            _case("negative", [[3, 0]], _PER_TENSOR, None, [[10, 10]], "0 is the zero point"),
            _case(
                "overflow",
                [[255] * 64],
                _HUGE,
                None,
                [[10]],
                "beyond 2**31 is the bottom",
                10,
                _OTHERS,
            ),
        ),
    ),
)

OPS = (*_STATIC, replace(_STATIC[0], name="_quantized::linear"))
