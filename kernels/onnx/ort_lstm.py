"""The long short-term memory of onnxruntime, step by step: gates of float32 of any products.

``onnx::LSTM`` under engine ort and ``com.microsoft::DynamicQuantizeLSTM`` share it. All rows of a
step are multiplied at once; where a sequence has ended its row is zero for the products of the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.kernels.jit import jit
from refquant.kernels.onnx import mlas_functions, recurrent

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Function = Callable[[F32], F32]
# Multiplies rows by the weight of a direction and adds what is given: (rows, start).
Product = Callable[[F32, F32 | None], F32]
Step = Callable[[F32, F32, "Gates"], tuple[F32, F32]]
DEFAULTS = ("Sigmoid", "Tanh", "Tanh")
# What onnxruntime takes where a number is not given; 0 for the other activations.
_ALPHA, _BETA = {"leakyrelu": 0.01, "hardsigmoid": 0.2, "elu": 1.0}, {"hardsigmoid": 0.5}
_TAKES_ALPHA = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
_TAKES_BETA = {"affine", "scaledtanh", "hardsigmoid"}


_NONE = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Gates:
    """What is done to the sums of a direction: ``bias`` and ``peepholes`` are added.

    The functions are those of the gates i, o and f, of the gate c, and of the cell.
    """

    bias: F32 | None
    peepholes: F32 | None
    functions: tuple[Function, ...]
    clip: float | None
    forget: bool

    @cached_property
    def usual(self) -> bool:
        """Whether the functions are those that the compiled step has."""
        return self.functions == (mlas_functions.logistic, *(mlas_functions.tanh,) * 2)

    @cached_property
    def end(self) -> np.float32:
        """What the inputs of functions are limited to."""
        return np.finfo(np.float32).max if self.clip is None else np.float32(self.clip)

    @cached_property
    def compiled(self) -> tuple[F32, F32, np.float32, bool]:
        """Return the arguments of the compiled step; absent arrays are empty."""
        given = (self.bias, self.peepholes)
        bias, seen = (_NONE if x is None else np.ascontiguousarray(x) for x in given)
        return bias, seen, np.float32(self.end), self.forget


def gates_of(
    directions: int,
    b: F32 | None,
    p: F32 | None,
    activations: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    clip: float | None,
    forget: bool,
) -> list[Gates]:
    """Return the gates of each direction; the two halves of a bias are added first.

    Raises
    ------
    VerifyError
        If the activations are not three for each direction.
    """
    names = [name.lower() for name in activations or DEFAULTS * directions]
    if len(names) != 3 * directions:
        raise VerifyError(f"LSTM: expected {3 * directions} activations, got {len(names)}")
    left, right = list(alphas or ()), list(betas or ())
    functions: list[Function] = []
    for name in names:
        alpha = left.pop(0) if left and name in _TAKES_ALPHA else _ALPHA.get(name, 0.0)
        beta = right.pop(0) if right and name in _TAKES_BETA else _BETA.get(name, 0.0)
        own = {"sigmoid": mlas_functions.logistic, "tanh": mlas_functions.tanh}.get(name)
        functions.append(own or recurrent.activation(name, alpha, beta))
    made = []
    for d in range(directions):
        bias = None if b is None else np.add(*b[d].reshape(2, -1))
        own_functions = tuple(functions[3 * d : 3 * d + 3])
        made.append(Gates(bias, None if p is None else p[d], own_functions, clip, forget))
    return made


def step(sums: F32, c: F32, gates: Gates) -> tuple[F32, F32]:
    """Return state and cell after a step, of the sums (rows, 4 * hidden) and the cell before.

    No step is fused: ``clip(sum + peephole * cell + bias)`` goes through its function, the cell
    is ``c * f + i * g`` and the state ``h(cell) * o``.
    """
    i, o, f, g = np.split(sums, 4, axis=1)
    bias = (None,) * 4 if gates.bias is None else np.split(gates.bias, 4)
    seen = None if gates.peepholes is None else np.split(gates.peepholes, 3)
    of_gate, of_new, of_cell = gates.functions

    def limited(x: F32, position: int, cell: F32 | None) -> F32:
        if cell is not None and seen is not None:
            x = x + cell * seen[position]
        return _limited(x, bias[position], gates.end)

    i = of_gate(limited(i, 0, c))
    f = np.float32(1) - i if gates.forget else of_gate(limited(f, 2, c))
    c = c * f + i * of_new(limited(g, 3, None))
    return of_cell(c) * of_gate(limited(o, 1, c)), c


def _limited(x: F32, bias: F32 | None, end: np.float32) -> F32:
    if bias is None:
        return np.asarray(np.where(x > end, end, np.where(x < -end, -end, x)), np.float32)
    x = x + bias
    x = np.where(x < end, x, end)  # NaN becomes the end
    return np.asarray(np.where(-end < x, x, -end), np.float32)


@jit
def _fill(sums: Any, c: Any, bias: Any, peepholes: Any, end: Any, forget: bool, h: Any) -> None:
    hidden = h.shape[1]
    for row in range(h.shape[0]):
        for j in range(hidden):
            cell = c[row, j]
            i = sums[row, j]
            o = sums[row, hidden + j]
            f = sums[row, 2 * hidden + j]
            g = sums[row, 3 * hidden + j]
            if peepholes.size:
                i = np.float32(i + np.float32(cell * peepholes[j]))
                f = np.float32(f + np.float32(cell * peepholes[2 * hidden + j]))
            i = mlas_functions.logistic_of(_end(i, bias, j, end))
            if forget:
                f = np.float32(np.float32(1) - i)
            else:
                f = mlas_functions.logistic_of(_end(f, bias, 2 * hidden + j, end))
            g = mlas_functions.tanh_of(_end(g, bias, 3 * hidden + j, end))
            cell = np.float32(np.float32(cell * f) + np.float32(i * g))
            if peepholes.size:
                o = np.float32(o + np.float32(cell * peepholes[hidden + j]))
            o = mlas_functions.logistic_of(_end(o, bias, hidden + j, end))
            c[row, j] = cell
            h[row, j] = np.float32(mlas_functions.tanh_of(cell) * o)


@jit
def _end(x: Any, bias: Any, j: int, end: Any) -> Any:
    if bias.size:
        x = np.float32(x + bias[j])
        x = x if x < end else end
        return x if -end < x else -end
    return end if x > end else (-end if x < -end else x)


def fast_step(sums: F32, c: F32, gates: Gates) -> tuple[F32, F32]:
    """Compute :func:`step` in a compiled loop."""
    if not gates.usual:
        return step(sums, c, gates)
    h, new = np.empty(c.shape, np.float32), c.copy()
    _fill(sums, new, *gates.compiled, h)
    return h, new


def layer(
    x: F32,
    products: Sequence[tuple[Product, Product]],
    gates: Sequence[Gates],
    lengths: Array | None,
    initial_h: F32 | None,
    initial_c: F32 | None,
    reverse: bool,
    step: Step = step,
) -> tuple[F32, F32, F32]:
    """Return Y, Y_h and Y_c.

    Parameters
    ----------
    x : float32 (time, batch, inputs)
    products : sequence
        For each direction the products of the input and of the state.
    gates : sequence
        Of each direction.
    lengths : int32 (batch,), optional
    initial_h, initial_c : float32 (directions, batch, hidden), optional
    reverse : bool
        Whether the only direction is backwards.
    step : callable
        ``step`` or ``fast_step``.
    """
    time, batch, _ = x.shape
    found = []
    for d, ((of_input, of_state), own) in enumerate(zip(products, gates, strict=True)):
        backwards = reverse or d == 1
        ends = np.full(batch, time) if lengths is None else np.asarray(lengths)
        order = _order(time, ends, backwards)
        longest = int(ends.max(initial=0))
        rows = x if order is None else np.take_along_axis(x, order[:, :, None], 0)
        sums = of_input(rows[:longest].reshape(longest * batch, x.shape[2]), None)
        zero = np.zeros((batch, sums.shape[1] // 4), np.float32)
        sums = sums.reshape(longest, batch, sums.shape[1])
        h = zero if initial_h is None else np.ascontiguousarray(initial_h[d])
        c = zero if initial_c is None else np.ascontiguousarray(initial_c[d])
        y = np.zeros((time, *zero.shape), np.float32)
        for t in range(longest):
            new, cell = step(of_state(h, sums[t]), c, own)
            inside = (t < ends)[:, None]
            whole = lengths is None or bool(inside.all())
            h, c = (
                (new, cell) if whole else (np.where(inside, new, zero), np.where(inside, cell, c))
            )
            y[t] = h
        last = y[ends - 1, np.arange(batch)] if time else zero
        some = (ends > 0)[:, None]
        if order is not None:
            y = np.take_along_axis(y, order[:, :, None], 0)
        found.append((y, np.where(some, last, zero), np.where(some, c, zero)))
    parts = list(zip(*found, strict=True))
    return np.stack(parts[0], 1), np.stack(parts[1]), np.stack(parts[2])


def _order(time: int, ends: Array, backwards: bool) -> Array | None:
    """Return which time each step takes, (time, batch): a shorter sequence begins at its end."""
    if not backwards:
        return None
    t = np.arange(time)[:, None]
    return np.where(t < ends, ends - 1 - t, t)
