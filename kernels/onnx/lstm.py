"""``onnx::LSTM``: long short-term memory, in NumPy's order or as onnxruntime adds it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.op import EVERY_ENGINE, Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.target import Engine, Target
from refquant.kernels.onnx import mlas_gemm, ort_lstm, recurrent


def reference(
    X: Array,  # noqa: N803
    W: Array,  # noqa: N803
    R: Array,  # noqa: N803
    B: Array | None = None,  # noqa: N803
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,  # noqa: N803
    target: Target = Target(),
    **how: Any,
) -> tuple[Array, ...]:
    r"""Return :math:`H_t = o \, h(C_t)` with :math:`C_t = f C_{t-1} + i \, g(\cdot)` at each time.

    The gates lie in the order i, o, f, c; ``P`` holds the peepholes of i, o, f, of which that of
    o sees the new state. With ``input_forget`` :math:`f = 1 - i`.

    Engine ort gives the bits of onnxruntime for weights that are constants: products in MLAS's
    order, onnxruntime's logistic function and hyperbolic tangent, a clip that leaves the cell
    alone, and zeros as the last states of a sequence of no steps (``ort_lstm.py``). Other engines
    take functions in the precision of ``X`` and sums in NumPy's order: compare with a tolerance of
    some units in the last place.

    Parameters
    ----------
    X, W, R, B, sequence_lens, initial_h
        As of ``onnx::RNN``, with four rows of gates.
    initial_c : float tensor (directions, batch, hidden), optional
    P : float tensor (directions, 3 * hidden), optional
    **how
        Those of ``onnx::RNN`` and ``input_forget``.

    Returns
    -------
    Y (time, directions, batch, hidden), Y_h and Y_c (directions, batch, hidden)

    Raises
    ------
    UnsupportedError
        If an activation is not known.
    """
    if target.engine is Engine.ORT and X.dtype == np.float32:
        states = initial_h, initial_c
        return _of_ort(
            X, W, R, B, sequence_lens, *states, P, how, ort_lstm.step, mlas_gemm.reference
        )
    return recurrent.layer("LSTM", X, W, R, B, sequence_lens, [initial_h, initial_c], P, how)


def _of_ort(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None,
    lengths: Array | None,
    initial_h: Array | None,
    initial_c: Array | None,
    p: Array | None,
    how: dict[str, Any],
    step: ort_lstm.Step,
    gemm: Callable[..., Array],
) -> tuple[Array, ...]:
    if how["layout"]:
        x = x.swapaxes(0, 1)
        initial_h, initial_c = (
            None if s is None else s.swapaxes(0, 1) for s in (initial_h, initial_c)
        )
    named = how["activations"], how["activation_alpha"], how["activation_beta"]
    gates = ort_lstm.gates_of(len(r), b, p, *named, how["clip"], bool(how["input_forget"]))

    def of(weight: Array) -> ort_lstm.Product:
        turned = np.ascontiguousarray(weight.T)
        return lambda rows, start: gemm(rows, turned, mlas_gemm.PACKED_PIECE, start)

    products = [(of(w[d]), of(r[d])) for d in range(len(r))]
    reverse = how["direction"] == "reverse"
    y, *ends = ort_lstm.layer(x, products, gates, lengths, initial_h, initial_c, reverse, step)
    if how["layout"]:
        return y.transpose(2, 0, 1, 3), *(end.swapaxes(0, 1) for end in ends)
    return y, *ends


def kernel_ort(
    X: Array,  # noqa: N803
    W: Array,  # noqa: N803
    R: Array,  # noqa: N803
    B: Array | None = None,  # noqa: N803
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,  # noqa: N803
    **how: Any,
) -> tuple[Array, ...]:
    """Compute :func:`reference` for engine ort in compiled loops."""
    states = initial_h, initial_c
    if X.dtype != np.float32:
        return reference(X, W, R, B, sequence_lens, *states, P, **how)
    compiled = ort_lstm.fast_step, mlas_gemm.gemm
    return _of_ort(X, W, R, B, sequence_lens, *states, P, how, *compiled)


_ONE, _FOUR = np.ones((2, 1, 1), np.float32), np.ones((1, 4, 1), np.float32)
_HOW: dict[str, Any] = {
    **{"activation_alpha": None, "activation_beta": None, "clip": None, "input_forget": 0},
    **{"direction": "forward", "layout": 0, "activations": ("Relu", "Relu", "Relu")},
}
_NO_STEPS = (_ONE, _FOUR, 0 * _FOUR, None, np.array([0], np.int32), _ONE[:1])

OPS = (
    Op(
        name="onnx::LSTM",
        reference=reference,
        infer=recurrent.infer_of("LSTM"),
        kernels={**dict.fromkeys(EVERY_ENGINE, reference), Engine.ORT: kernel_ort},
        source=(
            "onnx/docs/Operators.md::LSTM",
            "microsoft/onnxruntime/onnxruntime/core/providers/cpu/rnn/uni_directional_lstm.cc",
        ),
        cases=(
            Case(
                "ends",
                (_ONE, _FOUR, 0 * _FOUR, None, np.array([1], np.int32)),
                _HOW,
                ([[[[1]]], [[[0]]]], [[[1]]], [[[1]]]),
                "behind its end a sequence gives 0 and keeps its state",
            ),
            Case(
                "no steps",
                _NO_STEPS,
                _HOW,
                (0 * _ONE[:, None], [[[1]]], [[[0]]]),
                "the state is the initial one",
                (Engine.ONNX,),
            ),
            Case(
                "no steps of ort",
                _NO_STEPS,
                _HOW,
                (0 * _ONE[:, None], [[[0]]], [[[0]]]),
                "the initial state is lost",
                (Engine.ORT,),
            ),
        ),
    ),
)
