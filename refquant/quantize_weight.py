"""How a module's weight becomes integers when a model is converted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import OPS
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.target import Target
from refquant.ir.types import (
    DType,
    float16,
    per_channel_affine_float_qparams,
    qint8,
    qint32,
    quint4x2,
    quint8,
)


def quantize_weight(weight: Array, observer: Any) -> QTensor | Array:
    """Quantize a weight as ``convert_fx`` does, by the weight's observer or fake-quant.

    The observer is called with the weight first, as convert does: a moving average takes one more
    step. Then ``quantize_per_tensor`` or ``quantize_per_channel`` follows, which saturates at
    the ends of the dtype, *not* of the observer's quant_min and quant_max.

    Parameters
    ----------
    weight : float32 array
        Of which a batch norm is already folded in.
    observer : observer or fake-quant
        ``qconfig.weight()``, or the ``weight_fake_quant`` of a QAT module.

    Returns
    -------
    QTensor, or a float16 array for a float16 observer

    Raises
    ------
    VerifyError
        If the weight is not float32.
    UnsupportedError
        If the observer's dtype is not one a weight can have.

    Examples
    --------
    >>> from refquant.observer import default_weight_observer
    >>> quantize_weight(np.float32([-1.0, 0.5]), default_weight_observer()).int_repr
    array([-127,   64], dtype=int8)
    """
    if observer.dtype == float16:
        with np.errstate(over="ignore"):
            return weight.astype(np.float16)
    accepted = (quint8, qint8, quint4x2, qint32)
    if observer.dtype not in accepted:
        names = ", ".join(map(str, (*accepted, float16)))
        raise UnsupportedError(f"weight dtype {observer.dtype} is not one of {names}")
    return _observe_and_quantize(weight, observer, observer.dtype)


def quantize_weight_eager(weight: Array, observer: Any) -> QTensor:
    """Quantize a weight as eager mode's ``convert`` does, by the observer or fake-quant.

    As :func:`quantize_weight`, but the integers are then limited to the observer's quant_min and
    quant_max, and the dtype is qint8 unless the zero points are floats.

    Parameters
    ----------
    weight : float32 array
        Of which a batch norm is already folded in.
    observer : observer or fake-quant
        ``qconfig.weight()``, or the ``weight_fake_quant`` of a QAT module.

    Raises
    ------
    VerifyError
        If the weight is not float32, or the observer's dtype is not qint8 and its zero points
        are integers.

    Examples
    --------
    >>> from refquant.observer import weight_observer_range_neg_127_to_127
    >>> observer = weight_observer_range_neg_127_to_127()
    >>> quantize_weight_eager(np.float32([-1.0, 0.5]), observer).int_repr
    array([-127,   64], dtype=int8)
    """
    with_floats = observer.qscheme == per_channel_affine_float_qparams
    if not with_floats and observer.dtype != qint8:
        raise VerifyError(f"eager mode weights must be observed as qint8, got {observer.dtype}")
    q = _observe_and_quantize(weight, observer, observer.dtype if with_floats else qint8)
    if q.dtype == quint4x2:
        return q
    inner = getattr(observer, "activation_post_process", observer)
    limited = np.clip(q.int_repr, inner.quant_min, inner.quant_max)
    return replace(q, int_repr=limited.astype(q.int_repr.dtype))


def _observe_and_quantize(weight: Array, observer: Any, dtype: DType) -> QTensor:
    if weight.dtype != np.float32:
        raise VerifyError(f"a weight must be float32, got {weight.dtype}")
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    attributes: dict[str, Any]
    if observer.qscheme.is_per_channel:
        name = "aten::quantize_per_channel"
        integers = observer.qscheme != per_channel_affine_float_qparams
        attributes = {
            "scales": scale.astype(np.float64) if integers else scale,
            "zero_points": zero_point.astype(np.int64) if integers else zero_point,
            "axis": observer.ch_axis,
            "dtype": dtype,
        }
    else:
        name = "aten::quantize_per_tensor"
        attributes = {
            "scale": float(scale[0]),
            "zero_point": int(zero_point[0]),
            "dtype": dtype,
        }
    result: QTensor = OPS[name].bind(Target(), fast=True)(weight, **attributes)
    return result
