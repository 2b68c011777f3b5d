"""What an observer's call becomes: quantize and dequantize, in one of three forms."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from refquant.fx.attributes import Attributes
from refquant.fx.node_qconfigs import QConfigAny
from refquant.ir.errors import VerifyError
from refquant.ir.program import Call, Program
from refquant.ir.qtensor import Array
from refquant.ir.types import (
    DType,
    QScheme,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    int8,
    int16,
    int32,
    per_tensor_affine,
    per_tensor_symmetric,
    qint8,
    qint32,
    quint8,
    uint8,
)
from refquant.observer_base import caller

_QUANTIZED = (quint8, qint8, qint32)
_FLOAT8 = (float8_e5m2, float8_e4m3fn)
_PLAIN = (uint8, int8, int16, int32)
_UNDERLYING = {quint8: uint8, qint8: int8, qint32: int32, **{d: d for d in (*_PLAIN, *_FLOAT8)}}
_DECOMPOSED = "torch.ops.quantized_decomposed."
_CHOOSE = {
    per_tensor_affine: f"{_DECOMPOSED}choose_qparams.tensor",
    per_tensor_symmetric: f"{_DECOMPOSED}choose_qparams_symmetric.tensor",
}


def replace_observer(
    program: Program,
    call: Call,
    observer: Any,
    qconfigs: Mapping[str, QConfigAny],
    attributes: Attributes,
    is_decomposed: bool,
    reduce_range: bool,
) -> None:
    """Replace an observer's call by quantize and dequantize with its qparams.

    It is only removed where nobody before or after it has a QConfig, or where its dtype has no
    quantize.
    """
    neighbours = [*call.args, *call.users]
    none = all(isinstance(n, Call) and qconfigs.get(n.name, 0) is None for n in neighbours)
    dynamic = bool(getattr(observer, "is_dynamic", False))
    dtype = observer.dtype
    convert = getattr(observer, "convert", None)
    if is_decomposed and convert is not None:
        convert(program, call)
        return
    if none or not (dynamic or dtype in (*_QUANTIZED, *_PLAIN, *_FLOAT8, float16)):
        call.replace_all_uses_with(call.args[0])
        program.erase(call)
        return
    path = _path_and_prefix(call, qconfigs)
    write = _Writer(program, call, attributes, path)
    made = (
        write.decomposed(observer, dtype, dynamic)
        if is_decomposed
        else write.plain(observer, dtype, dynamic, reduce_range)
    )
    if made is not None:
        call.replace_all_uses_with(made)
        program.erase(call)


def _path_and_prefix(call: Call, qconfigs: Mapping[str, QConfigAny]) -> str:
    """Return what the names of scale and zero point start with: the path of the observed call.

    An observer that is only there for the next call is named after that: the first functional
    linear among its users, else its first user.
    """
    observed = call.args[0]
    named: Call | None = observed
    prefix = ""
    if observed.name in qconfigs and qconfigs[observed.name] is None:
        users = list(call.users)
        linear = [user for user in users if user.target == "torch.nn.functional.linear"]
        named = next(iter((*linear, *users)), None)
        prefix = "_input"
    owner = named.owner if named is not None else None
    return f"{owner.path if owner else ''}{prefix}"


class _Writer:
    """Writes the calls that stand for one observer."""

    def __init__(self, program: Program, call: Call, attributes: Attributes, path: str) -> None:
        self.program, self.at, self.attributes, self.path = program, call, attributes, path
        self.input = call.args[0]

    def call(self, kind: str, target: str, *args: Any) -> Call:
        return self.program.call(kind, target, args, before=self.at)

    def qparams(self, observer: Any) -> tuple[Array, Array]:
        """Return scale and zero point; warnings of the observer get the call's name."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found: tuple[Array, Array] = observer.calculate_qparams()
        for warning in seen:
            warnings.warn(
                f"{self.at.name}, observing {self.input.name}: {warning.message}",
                warning.category,
                stacklevel=caller(),
            )
        return found

    def constant(self, what: str, value: Array) -> Call:
        name = self.attributes.add(f"{self.path}_{what}_", value)
        return self.call("get_attr", name)

    def plain(self, observer: Any, dtype: DType, dynamic: bool, reduce_range: bool) -> Call | None:
        if not dynamic and dtype in (*_QUANTIZED, *_FLOAT8):
            scale, zero_point = self.qparams(observer)
            if QScheme(observer.qscheme).is_per_channel:
                constants = self.constants(scale, zero_point)
                axis = int(observer.ch_axis)
                quantized = self.call(
                    "call_function",
                    "torch.quantize_per_channel",
                    self.input,
                    *constants,
                    axis,
                    dtype,
                )
            else:
                constants = self.constants(
                    np.array(_one(scale), np.float32), np.array(int(_one(zero_point)), np.int64)
                )
                quantized = self.call(
                    "call_function", "torch.quantize_per_tensor", self.input, *constants, dtype
                )
        elif dynamic:
            target = "torch.quantize_per_tensor_dynamic"
            quantized = self.call("call_function", target, self.input, dtype, reduce_range)
        elif dtype == float16:
            quantized = self.call("call_method", "to", self.input, dtype)
        else:
            return None
        return self.call("call_method", "dequantize", quantized)

    def constants(self, scale: Array, zero_point: Array) -> tuple[Call, Call]:
        first = self.constant("scale", np.array(scale))
        return first, self.constant("zero_point", np.array(zero_point))

    def decomposed(self, observer: Any, dtype: DType, dynamic: bool) -> Call:
        if dtype == float16 and not dynamic:
            target = f"{_DECOMPOSED}convert_element_type.no_fuse"
            half = self.call("call_function", target, self.input, float16)
            return self.call("call_function", target, half, float32)
        kind = _UNDERLYING.get(dtype)
        if not dynamic:
            scales, zero_points = self.qparams(observer)
        limits = (observer.quant_min, observer.quant_max)
        if dynamic:
            if kind not in (uint8, int8):
                raise VerifyError(f"dynamic quantization to {dtype} has no decomposed form")
            qscheme = getattr(observer, "qscheme", per_tensor_affine)
            eps = getattr(observer, "eps", float(np.finfo(np.float32).eps))
            chosen = self.call("call_function", _CHOOSE[qscheme], self.input, *limits, eps, kind)
            scale = self.call("call_function", "operator.getitem", chosen, 0)
            zero_point = self.call("call_function", "operator.getitem", chosen, 1)
            return self.pair("per_tensor.tensor", scale, zero_point, *limits, kind)
        if QScheme(observer.qscheme).is_per_channel:
            constants = self.constants(scales, zero_points)
            axis = int(observer.ch_axis)
            return self.pair("per_channel.default", *constants, axis, *limits, kind)
        numbers = (float(_one(scales)), int(_one(zero_points)))
        return self.pair("per_tensor.default", *numbers, *limits, kind)

    def pair(self, form: str, *qparams: Any) -> Call:
        quantized = self.call(
            "call_function", f"{_DECOMPOSED}quantize_{form}", self.input, *qparams
        )
        return self.call("call_function", f"{_DECOMPOSED}dequantize_{form}", quantized, *qparams)


def _one(values: Array) -> Any:
    return np.asarray(values).reshape(-1)[0]
