"""``com.microsoft::DynamicQuantizeLSTM``: an LSTM whose products are of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import Engine, Target
from refquant.ir.types import Shape, TensorType, float32, format_shape, int32
from refquant.kernels.onnx import integer_product as product
from refquant.kernels.onnx import ort_lstm
from refquant.kernels.onnx.dynamic_product import DynamicWeight
from refquant.kernels.onnx.dynamic_quantize_linear import reference as quantize_slowly
from refquant.kernels.onnx.kept import KeptArray, form, pack
from refquant.kernels.onnx.literals import f32, i8
from refquant.kernels.onnx.operands import BYTES, Engines, dtype_in, same_dtype

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_OP = "com.microsoft::DynamicQuantizeLSTM"
_ORT = Target(Engine.ORT)
Strings = tuple[str, ...] | None
Floats = tuple[float, ...] | None


def reference(
    X: F32,  # noqa: N803
    W: Array,  # noqa: N803
    R: Array,  # noqa: N803
    B: F32 | None = None,  # noqa: N803
    sequence_lens: Array | None = None,
    initial_h: F32 | None = None,
    initial_c: F32 | None = None,
    P: F32 | None = None,  # noqa: N803
    W_scale: F32 | None = None,  # noqa: N803
    W_zero_point: Array | None = None,  # noqa: N803
    R_scale: F32 | None = None,  # noqa: N803
    R_zero_point: Array | None = None,  # noqa: N803
    activations: Strings = None,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[F32, F32, F32]:
    r"""Quantize the input and each state by their own ranges and run an LSTM on integer products.

    .. math:: g_t = f32(acc_W) \cdot (s_X s_W) + f32(acc_R) \cdot (s_H s_R)

    The whole input is quantized at once, the states of all sequences of a batch at each step, both
    as by ``onnx::DynamicQuantizeLinear`` under engine ort. Sums are exact; products of scales, the
    products with them and the sum are rounded to float32 one by one. What follows is
    ``ort_lstm.py``: peephole, bias (of input and state added first) and clip, onnxruntime's
    logistic function and hyperbolic tangent, ``c * f + i * g`` not fused.

    A sequence that has ended counts as a state of zeros in the range of the others; one of no
    steps gives zeros and not its initial state. That is onnxruntime with one thread and with ``Y``
    asked for. Engines onnx and ort are the same: the operator is onnxruntime's own.

    Parameters
    ----------
    X : float32 (time, batch, inputs)
    W, R : uint8 or int8 (directions, inputs, 4 * hidden), (directions, hidden, 4 * hidden)
        The gates lie in the order i, o, f, c.
    B : float32 (directions, 8 * hidden), optional
        The biases of the input, then of the state.
    sequence_lens : int32 (batch,), optional
    initial_h, initial_c : float32 (directions, batch, hidden), optional
    P : float32 (directions, 3 * hidden), optional
        The peepholes of i, o and f.
    W_scale, R_scale : float32 (directions,) or (directions, 4 * hidden)
    W_zero_point, R_zero_point : like ``W`` and ``R``, (directions,) or (directions, 4 * hidden)
        Of a direction all the same; where there is one for each column of int8, 0.
    activations, activation_alpha, activation_beta, clip, direction, hidden_size, input_forget
        Those of ``onnx::LSTM``. Elu, ScaledTanh, Softplus and Softsign are those of that operator,
        whose last bits may differ.

    Returns
    -------
    Y (time, directions, batch, hidden), Y_h and Y_c (directions, batch, hidden)

    Raises
    ------
    VerifyError
        If types, shapes or zero points do not fit.
    UnsupportedError
        If an activation is not known.

    Examples
    --------
    >>> w = np.int8([[[0, 0, 0, 1]]])
    >>> scale, zero = np.float32([1]), np.int8([0])
    >>> x = np.float32([[[255]], [[255]]])
    >>> reference(x, w, 0 * w, None, None, None, None, None, scale, zero, scale, zero)[2]
    array([[[0.75]]], dtype=float32)
    """
    parameters = W_scale, W_zero_point, R_scale, R_zero_point
    named = activations, activation_alpha, activation_beta
    gates = ort_lstm.gates_of(len(R), B, P, *named, clip, bool(input_forget))
    products = _products(_product, W, R, *parameters)
    reverse = direction == "reverse"
    return ort_lstm.layer(X, products, gates, sequence_lens, initial_h, initial_c, reverse)


def _products(
    make: Callable[..., ort_lstm.Product],
    w: Array,
    r: Array,
    w_scale: Array | None,
    w_zero: Array | None,
    r_scale: Array | None,
    r_zero: Array | None,
) -> list[tuple[ort_lstm.Product, ort_lstm.Product]]:
    def of(weight: Array, scale: Any, zero: Any, d: int, name: str) -> ort_lstm.Product:
        points = zero[d : d + 1].reshape(-1)
        point = points[0]
        if (points != point).any() or (zero.ndim == 2 and weight.dtype == np.int8 and point):
            raise VerifyError(
                f"{_OP}: {name}_zero_point must be the same for all columns, and 0 of int8, got "
                f"{np.unique(points).tolist()}"
            )
        return make(weight, d, np.asarray(scale[d]), np.asarray(point))

    return [
        (of(w, w_scale, w_zero, d, "W"), of(r, r_scale, r_zero, d, "R")) for d in range(len(w))
    ]


def _product(weight: Array, d: int, scale: Array, zero: Array) -> ort_lstm.Product:
    def multiply(rows: F32, start: F32 | None) -> F32:
        q, a_scale, a_zero = quantize_slowly(rows, _ORT)
        total = product.sums(q, a_zero.astype(np.int32), weight[d], zero.astype(np.int32))
        y = total.astype(np.float32) * np.asarray(a_scale * scale, np.float32)
        return np.asarray(y if start is None else start + y)

    return multiply


def _fast_product(weight: Array, d: int, scale: Array, zero: Array) -> ort_lstm.Product:
    """Return what multiplies by the tile; the weight is a constant."""
    if not isinstance(weight, KeptArray) or not weight.size:
        return _product(weight, d, scale, zero)
    matrix = form(weight, ("direction", d), lambda: KeptArray.of(weight[d]))
    return DynamicWeight.of(matrix, scale, zero).product


def _kept_beside(w: Array, r: Array) -> Array:
    """Return the second weight so that it keeps its forms where the first one does."""
    if not isinstance(w, KeptArray) or isinstance(r, KeptArray):
        return r
    kept: Array = form(w, "state", lambda: KeptArray.of(r))
    if not np.array_equal(kept, r):
        kept = w.made["state"] = KeptArray.of(r)
    return kept


def kernel(
    X: F32,  # noqa: N803
    W: Array,  # noqa: N803
    R: Array,  # noqa: N803
    B: F32 | None = None,  # noqa: N803
    sequence_lens: Array | None = None,
    initial_h: F32 | None = None,
    initial_c: F32 | None = None,
    P: F32 | None = None,  # noqa: N803
    W_scale: F32 | None = None,  # noqa: N803
    W_zero_point: Array | None = None,  # noqa: N803
    R_scale: F32 | None = None,  # noqa: N803
    R_zero_point: Array | None = None,  # noqa: N803
    activations: Strings = None,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[F32, F32, F32]:
    """Compute :func:`reference` with the compiled tile and compiled gates."""
    parameters = W_scale, W_zero_point, R_scale, R_zero_point
    named = activations, activation_alpha, activation_beta
    gates = ort_lstm.gates_of(len(R), B, P, *named, clip, bool(input_forget))
    products = _products(_fast_product, W, _kept_beside(W, R), *parameters)
    states = initial_h, initial_c
    reverse, step = direction == "reverse", ort_lstm.fast_step
    return ort_lstm.layer(X, products, gates, sequence_lens, *states, reverse, step)


def infer(
    X: TensorType,  # noqa: N803
    W: TensorType,  # noqa: N803
    R: TensorType,  # noqa: N803
    B: TensorType | None = None,  # noqa: N803
    sequence_lens: TensorType | None = None,
    initial_h: TensorType | None = None,
    initial_c: TensorType | None = None,
    P: TensorType | None = None,  # noqa: N803
    W_scale: TensorType | None = None,  # noqa: N803
    W_zero_point: TensorType | None = None,  # noqa: N803
    R_scale: TensorType | None = None,  # noqa: N803
    R_zero_point: TensorType | None = None,  # noqa: N803
    activations: Strings = None,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[TensorType, ...]:
    """Check types, shapes and attributes."""
    if X.rank != 3 or W.rank != 3 or R.rank != 3:
        raise VerifyError(f"{_OP}: X, W and R must have rank 3, got {X}, {W}, {R}")
    wanted = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(direction)
    directions, hidden, _ = R.shape
    if wanted != directions or hidden_size not in (None, hidden):
        raise VerifyError(
            f"{_OP}: R {format_shape(R.shape)} does not fit direction {direction!r} and "
            f"hidden_size {hidden_size}"
        )
    if not clip and clip is not None:
        raise VerifyError(f"{_OP}: clip must be more than 0, got {clip}")
    assert isinstance(hidden, int)
    rows = 4 * hidden
    _check(W, "W", (directions, X.shape[2], rows))
    _check(R, "R", (directions, hidden, rows))
    time, batch, _ = X.shape
    state: Shape = (directions, batch, hidden)
    for x, name, shape in (
        (B, "B", (directions, 2 * rows)),
        (initial_h, "initial_h", state),
        (initial_c, "initial_c", state),
        (P, "P", (directions, 3 * hidden)),
    ):
        if x is not None:
            _check(x, name, shape)
            dtype_in(_OP, x, (float32,), name)
    dtype_in(_OP, X, (float32,), "X")
    if sequence_lens is not None:
        dtype_in(_OP, sequence_lens, (int32,), "sequence_lens")
        _check(sequence_lens, "sequence_lens", (batch,))
    for weight, scale, zero, name in (
        (W, W_scale, W_zero_point, "W"),
        (R, R_scale, R_zero_point, "R"),
    ):
        dtype_in(_OP, weight, BYTES, name)
        if scale is None or zero is None:
            raise VerifyError(f"{_OP}: {name}_scale and {name}_zero_point must be given")
        dtype_in(_OP, scale, (float32,), f"{name}_scale")
        same_dtype(_OP, zero, weight, f"{name}_zero_point")
        for x, what in ((scale, "scale"), (zero, "zero_point")):
            if x.shape != (directions,):
                _check(x, f"{name}_{what}", (directions, rows))
        if directions == 2 and scale.shape != zero.shape:
            raise UnsupportedError(
                f"{_OP}: onnxruntime reads zero points that are not there where {name}_scale is "
                f"{format_shape(scale.shape)} and {name}_zero_point {format_shape(zero.shape)}"
            )
    return X.with_shape((time, *state)), X.with_shape(state), X.with_shape(state)


def _check(x: TensorType, name: str, shape: Shape) -> None:
    if x.shape != shape:
        raise VerifyError(
            f"{_OP}: {name} must be {format_shape(shape)}, got {format_shape(x.shape)}"
        )


_X, _W = f32([[[255]], [[255]]]), i8([[[0, 0, 0, 1]]])
_NOTHING = i8([[[0, 0, 0, 0]]])
_PARAMETERS = (f32([1]), i8([0]), f32([1]), i8([0]))

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        pack=pack,
        source=(
            "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization/"
            "dynamic_quantize_lstm.cc::DynamicQuantizeLSTM",
            "microsoft/onnxruntime/onnxruntime/core/providers/cpu/rnn/uni_directional_lstm.cc",
        ),
        cases=(
            Case(
                "one step",
                (_X[:1], _W, _NOTHING, *(None,) * 5, *_PARAMETERS),
                {"activations": ("Sigmoid", "Relu", "Relu")},
                ([[[[63.75]]]], [[[63.75]]], [[[127.5]]]),
                "half of 255 is the cell and half of that the state",
            ),
            Case(
                "two steps",
                (_X, _W, _NOTHING, *(None,) * 5, *_PARAMETERS),
                {"activations": ("Sigmoid", "Relu", "Relu"), "direction": "reverse"},
                ([[[[95.625]]], [[[63.75]]]], [[[95.625]]], [[[191.25]]]),
                "backwards, a cell forgets its half",
            ),
            Case(
                "ended",
                (
                    _X,
                    _W,
                    _NOTHING,
                    None,
                    np.array([0], np.int32),
                    np.ones((1, 1, 1), np.float32),
                    None,
                    None,
                    *_PARAMETERS,
                ),
                {},
                (np.zeros((2, 1, 1, 1)), [[[0]]], [[[0]]]),
                "no steps give zeros, not the initial state",
            ),
        ),
    ),
)
