"""``onnx::RNN`` and ``GRU``: recurrent layers with ONNX's gates and activations.

The layer itself serves ``onnx::LSTM`` too.

Products are summed in NumPy's order and functions taken in the precision of ``X``, so last bits
depend on the machine's linear algebra: compare with a tolerance of some units in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import Size, TensorType
from refquant.kernels.onnx.operator import operator

Function = Callable[[Array], Array]
# Steps the state by one row of inputs: (gates of the input, states) -> states.
Cell = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}


def sigmoid(x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))`` without overflow.

    Examples
    --------
    >>> sigmoid(np.float32([0, -200])).tolist()
    [0.5, 0.0]
    """
    with np.errstate(over="ignore", under="ignore"):
        small = np.exp(-np.abs(x))
        return np.asarray(np.where(x >= 0, 1, small) / (1 + small), x.dtype)


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(x, 0), x.dtype)


def activation(name: str, alpha: float | None, beta: float | None) -> Function:
    """Return an activation by its name in ONNX.

    Raises
    ------
    UnsupportedError
        If there is none of that name.

    Examples
    --------
    >>> activation("LeakyRelu", 0.5, None)(np.float32([-2, 2]))
    array([-1.,  2.], dtype=float32)
    """

    def either(x: Array, positive: Any, negative: Any) -> Array:
        return np.asarray(np.where(x >= 0, positive, negative), x.dtype)

    a = {"LeakyRelu": 0.01, "HardSigmoid": 0.2, "ThresholdedRelu": 1.0, "Elu": 1.0, "Affine": 1.0}
    alpha = a.get(name, 0.0) if alpha is None else alpha
    beta = (0.5 if name == "HardSigmoid" else 0.0) if beta is None else beta
    functions: dict[str, Function] = {
        "affine": lambda x: np.asarray(alpha * x + beta, x.dtype),
        "elu": lambda x: either(x, x, alpha * np.expm1(np.minimum(x, 0))),
        "hardsigmoid": lambda x: np.asarray(np.clip(alpha * x + beta, 0, 1), x.dtype),
        "leakyrelu": lambda x: either(x, x, alpha * x),
        "relu": lambda x: np.maximum(x, 0),
        "scaledtanh": lambda x: np.asarray(alpha * np.tanh(beta * x), x.dtype),
        "sigmoid": sigmoid,
        "softplus": _softplus,
        "softsign": lambda x: np.asarray(x / (1 + np.abs(x)), x.dtype),
        "tanh": np.tanh,
        "thresholdedrelu": lambda x: np.asarray(np.where(x > alpha, x, 0), x.dtype),
    }
    if name.lower() not in functions:
        raise UnsupportedError(f"activation {name!r}")
    return functions[name.lower()]


def run(
    x: Array, step: Cell, states: tuple[Array, ...], lengths: Array | None, backwards: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Return what the cell gives at each time, and its last states.

    A sequence shorter than the longest keeps its state and gives zeros behind its end; backwards
    it starts at its own end.
    """
    time, batch = x.shape[:2]
    y = np.zeros((time, *states[0].shape), x.dtype)
    for t in reversed(range(time)) if backwards else range(time):
        new = step(x[t], states)
        if lengths is None:
            states = new
            y[t] = new[0]
        else:
            inside = (t < lengths).reshape(batch, 1)
            pairs = zip(new, states, strict=True)
            states = tuple(np.where(inside, now, before) for now, before in pairs)
            y[t] = np.where(inside, new[0], 0)
    return y, states


def _rnn(r: Array, bias: Array, f: Sequence[Function]) -> Cell:
    def step(x: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
        return (f[0](x + states[0] @ r.T + bias),)

    return step


def _gru(r: Array, bias: Array, f: Sequence[Function], before: bool) -> Cell:
    n = r.shape[1]
    bias_zr, bias_h = bias[: 2 * n], bias[2 * n :]

    def step(x: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = states
        gates = f[0](x[:, : 2 * n] + h @ r[: 2 * n].T + bias_zr)
        z, reset = gates[:, :n], gates[:, n:]
        r_h = r[2 * n :].T
        inner = reset * (h @ r_h + bias_h) if before else (reset * h) @ r_h + bias_h
        return ((1 - z) * f[1](x[:, 2 * n :] + inner) + z * h,)

    return step


def _lstm(
    r: Array, bias: Array, f: Sequence[Function], peepholes: Array | None, forget: bool
) -> Cell:
    n = r.shape[1]
    i_c, o_c, f_c = np.zeros((3, n), r.dtype) if peepholes is None else peepholes.reshape(3, n)

    def step(x: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
        h, c = states
        gates = x + h @ r.T + bias
        i, o, keep, new = (gates[:, k * n : (k + 1) * n] for k in range(4))
        i = f[0](i + i_c * c)
        keep = 1 - i if forget else f[0](keep + f_c * c)
        cell = keep * c + i * f[1](new)
        return f[0](o + o_c * cell) * f[2](cell), cell

    return step


def layer(
    kind: str,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None,
    lengths: Array | None,
    initial: Sequence[Array | None],
    peepholes: Array | None,
    how: dict[str, Any],
) -> tuple[Array, ...]:
    """Return what a layer of a kind gives at each time, and its last states."""
    if how["layout"]:
        x = x.swapaxes(0, 1)
        initial = [None if s is None else s.swapaxes(0, 1) for s in initial]
    directions, hidden = r.shape[0], r.shape[2]
    rows = GATES[kind] * hidden
    states: list[list[Array]] = [[] for _ in initial]
    results = []
    names = _names(kind, how, directions)
    for d in range(directions):
        backwards = how["direction"] == "reverse" or d == 1
        bias = np.zeros(2 * rows, x.dtype) if b is None else b[d]
        functions = _functions(names, how, d, len(names) // directions)
        clip = how["clip"]
        limited = [_clipped(f, clip) for f in functions]
        before = kind == "GRU" and how["linear_before_reset"]
        of_input, of_state = bias[:rows], bias[rows:]
        gates = x @ w[d].T + of_input
        zero = np.zeros((x.shape[1], hidden), x.dtype)
        first = tuple(zero if s is None else s[d] for s in initial)
        if kind == "RNN":
            cell = _rnn(r[d], of_state, limited)
        elif kind == "GRU":
            cell = _gru(r[d], of_state, limited, bool(before))
        else:
            own = None if peepholes is None else peepholes[d]
            cell = _lstm(r[d], of_state, limited, own, bool(how["input_forget"]))
        y, last = run(gates, cell, first, lengths, backwards)
        results.append(y)
        for found, state in zip(states, last, strict=True):
            found.append(state)
    y = np.stack(results, 1)
    ends = [np.stack(parts) for parts in states]
    if how["layout"]:
        return y.transpose(2, 0, 1, 3), *(end.swapaxes(0, 1) for end in ends)
    return y, *ends


def _names(kind: str, how: dict[str, Any], directions: int) -> tuple[str, ...]:
    names: tuple[str, ...] = how["activations"] or DEFAULTS[kind] * directions
    count = len(DEFAULTS[kind]) * directions
    if len(names) < count:
        raise VerifyError(f"{kind}: expected {count} activations, got {len(names)}")
    return names[:count]  # the standard's defaults of RNN are for two directions


def _functions(names: Sequence[str], how: dict[str, Any], d: int, count: int) -> list[Function]:
    """Return the activations of a direction; numbers go to those that take one, in order."""
    alphas, betas = list(how["activation_alpha"] or ()), list(how["activation_beta"] or ())
    takes_alpha = ("LeakyRelu", "ThresholdedRelu", "HardSigmoid", "Elu", "ScaledTanh", "Affine")
    made = []
    for name in names:
        alpha = alphas.pop(0) if alphas and name in takes_alpha else None
        beta = betas.pop(0) if betas and name in ("HardSigmoid", "ScaledTanh", "Affine") else None
        made.append(activation(name, alpha, beta))
    return made[d * count : (d + 1) * count]


def _clipped(function: Function, clip: float | None) -> Function:
    if not clip:
        return function
    return lambda x: function(np.clip(x, -clip, clip).astype(x.dtype))


def rnn(
    X: Array,  # noqa: N803
    W: Array,  # noqa: N803
    R: Array,  # noqa: N803
    B: Array | None = None,  # noqa: N803
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    **how: Any,
) -> tuple[Array, ...]:
    r"""Return :math:`H_t = f(X_t W^T + H_{t-1} R^T + b_W + b_R)` at each time, and the last.

    Parameters
    ----------
    X : float tensor (time, batch, inputs); with ``layout`` 1 (batch, time, inputs)
    W, R : float tensors (directions, hidden, inputs), (directions, hidden, hidden)
    B : float tensor (directions, 2 * hidden), optional
        The biases of the input, then of the state.
    sequence_lens : int32 tensor (batch,), optional
        Behind its end a sequence gives zeros and keeps its state.
    initial_h : float tensor (directions, batch, hidden), optional
    **how
        ``activations``, ``activation_alpha``, ``activation_beta``, ``clip``, ``direction``,
        ``layout``.

    Returns
    -------
    Y (time, directions, batch, hidden) and Y_h (directions, batch, hidden)

    Raises
    ------
    UnsupportedError
        If an activation is not known.

    Examples
    --------
    >>> how = dict(activations=("Relu",), activation_alpha=None, activation_beta=None)
    >>> one = np.ones((1, 1, 1), np.float32)
    >>> y, h = rnn(np.float32([[[1]], [[2]]]), one, one, **how, clip=None, layout=0,
    ...            direction="forward")
    >>> y.ravel(), h.ravel()
    (array([1., 3.], dtype=float32), array([3.], dtype=float32))
    """
    return layer("RNN", X, W, R, B, sequence_lens, [initial_h], None, how)


def gru(
    X: Array,  # noqa: N803
    W: Array,  # noqa: N803
    R: Array,  # noqa: N803
    B: Array | None = None,  # noqa: N803
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    **how: Any,
) -> tuple[Array, ...]:
    r"""Return :math:`H_t = (1 - z) h + z H_{t-1}` at each time, and the last.

    The gates lie in the order z, r, h; :math:`z` and :math:`r` go through the first activation,
    :math:`h = g(X_t W_h^T + b + (r H_{t-1}) R_h^T + b_R)` through the second one; with
    ``linear_before_reset`` :math:`r` multiplies the product and its bias instead.

    Parameters
    ----------
    X, W, R, B, sequence_lens, initial_h
        As of ``onnx::RNN``, with three rows of gates.
    **how
        Those of ``onnx::RNN`` and ``linear_before_reset``.

    Returns
    -------
    Y (time, directions, batch, hidden) and Y_h (directions, batch, hidden)

    Raises
    ------
    UnsupportedError
        If an activation is not known.
    """
    return layer("GRU", X, W, R, B, sequence_lens, [initial_h], None, how)


def infer_of(kind: str) -> Callable[..., tuple[TensorType, ...]]:
    """Return what checks the types of a kind."""

    def infer(
        x: TensorType,
        w: TensorType,
        r: TensorType,
        b: TensorType | None = None,
        sequence_lens: TensorType | None = None,
        *states: TensorType | None,
        **how: Any,
    ) -> tuple[TensorType, ...]:
        if x.rank != 3 or w.rank != 3 or r.rank != 3:
            raise VerifyError(f"{kind}: X, W and R must have rank 3, got {x}, {w}, {r}")
        directions, rows, hidden = r.shape
        wanted = 2 if how["direction"] == "bidirectional" else 1
        expected = (wanted, GATES[kind] * hidden, x.shape[2])
        if (directions, rows) != expected[:2] or w.shape != expected:
            raise VerifyError(f"{kind}: W {w} and R {r} do not fit X {x} {how['direction']}")
        time, batch = (x.shape[1], x.shape[0]) if how["layout"] else x.shape[:2]
        state: tuple[Size, ...] = (directions, batch, hidden)
        bias = (directions, 2 * rows)
        if b is not None and b.shape != bias:
            raise VerifyError(f"{kind}: expected B {bias}, got {b}")
        if sequence_lens is not None and sequence_lens.shape != (batch,):
            raise VerifyError(f"{kind}: expected one length per sequence, got {sequence_lens}")
        whole: tuple[Size, ...] = (time, *state)
        if how["layout"]:
            state, whole = (batch, directions, hidden), (batch, time, directions, hidden)
        for given in states[:2]:
            if given is not None and given.shape != state:
                raise VerifyError(f"{kind}: expected a state of {state}, got {given}")
        for given in states[2:]:
            if given is not None and given.shape != (directions, 3 * hidden):
                raise VerifyError(f"{kind}: expected P [{directions}, {3 * hidden}], got {given}")
        ends = 2 if kind == "LSTM" else 1
        return x.with_shape(whole), *([x.with_shape(state)] * ends)

    return infer


_ONE = np.ones((1, 1, 1), np.float32)
_HOW: dict[str, Any] = {
    **{"activation_alpha": None, "activation_beta": None, "clip": None},
    **{"direction": "forward", "layout": 0},
}

OPS = (
    operator(
        "RNN",
        rnn,
        infer_of("RNN"),
        Case(
            "reverse",
            (np.array([[[1]], [[2]]], np.float32), _ONE, _ONE),
            {**_HOW, "activations": ("Relu",), "direction": "reverse"},
            ([[[[3]]], [[[2]]]], [[[3]]]),
            "the last time is the first step",
        ),
    ),
    operator(
        "GRU",
        gru,
        infer_of("GRU"),
        Case(
            "gates",
            (_ONE, np.zeros((1, 3, 1), np.float32), np.zeros((1, 3, 1), np.float32)),
            {**_HOW, "activations": ("Sigmoid", "Tanh"), "linear_before_reset": 0},
            ([[[[0]]]], [[[0]]]),
            "half of nothing",
        ),
    ),
)
