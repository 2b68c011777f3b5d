"""``torch.sum`` of float32 on a CPU, in torch's order of additions.

Sums are cascaded: rows are added into an accumulator, which is emptied into a higher one after
``2**p`` rows, and so on for four levels. How elements are dealt to columns and lanes depends on
which strides are contiguous. The kernel has 8 lanes under every instruction set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from refquant.ir.target import Target
from refquant.kernels.pointwise import GRAIN
from refquant.kernels.tensor_iterator import loops

F32 = npt.NDArray[np.float32]
LANES = 8
COLUMNS = 4
LEVELS = 4
CACHE_LINE = 32


def _in_order(rows: F32) -> F32:
    """Add along the first axis one by one."""
    return np.asarray(np.add.accumulate(rows, axis=0, dtype=np.float32)[-1])


def cascade(rows: F32) -> F32:
    """Add along the first axis with four levels of accumulators.

    Examples
    --------
    >>> float(cascade(np.full(100, 0.1, np.float32)))
    10.000000953674316
    """
    size = len(rows)
    bits = max(4, max(1, (size - 1).bit_length()) // LEVELS)
    step = 1 << bits
    accumulators = [np.zeros(rows.shape[1:], np.float32) for _ in range(LEVELS)]
    done = 0
    while done + step <= size:
        accumulators[0] = accumulators[0] + _in_order(rows[done : done + step])
        done += step
        for level in range(1, LEVELS):
            accumulators[level] = accumulators[level] + accumulators[level - 1]
            accumulators[level - 1] = np.zeros_like(accumulators[level])
            if done & ((step - 1) << (level * bits)):
                break
    if done < size:
        rest = np.concatenate([accumulators[0][np.newaxis], rows[done:]])
        accumulators[0] = _in_order(rest)
    return _in_order(np.stack(accumulators))


def _in_columns(rows: F32) -> F32:
    """Deal rows to four columns, cascade each, then add the left-over rows and the columns."""
    dealt = len(rows) // COLUMNS * COLUMNS
    columns = cascade(rows[:dealt].reshape(dealt // COLUMNS, COLUMNS, *rows.shape[1:]))
    return _in_order(np.concatenate([columns[:1], rows[dealt:], columns[1:]]))


def _contiguous(x: F32) -> F32:
    """Sum each row of (rows, n), n contiguous and >= 8: lanes, then the scalar tail first."""
    n = x.shape[1]
    body = n // LANES * LANES
    lanes = _in_columns(np.moveaxis(x[:, :body].reshape(len(x), body // LANES, LANES), 0, -1))
    zero = np.zeros((1, len(x)), np.float32)
    return _in_order(np.concatenate([zero, x[:, body:].T, lanes]))


def _block(x: F32) -> F32:
    """Sum the first axis of (reduced, kept) as one call of torch's inner loop does."""
    reduced, kept = x.shape
    reduced_step, kept_step = (stride // x.itemsize for stride in x.strides)
    if reduced_step == 1 and reduced >= LANES:
        return _contiguous(x.T)
    out = np.empty(kept, np.float32)
    if kept_step == 1 and kept >= LANES:
        whole = kept // (COLUMNS * LANES) * COLUMNS * LANES
    elif reduced_step < kept_step:
        whole = 0
    else:
        whole = kept // COLUMNS * COLUMNS
    out[:whole] = cascade(x[:, :whole])
    out[whole:] = _in_columns(x[:, whole:])
    return out


def _blocks(
    shape: Sequence[int], begin: int, end: int
) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Cut a range of a loop nest into calls of the two innermost loops: position and lengths."""
    while begin < end:
        rest, position = begin, []
        for length in shape:
            position.append(rest % length)
            rest //= length
        first = min(shape[0] - position[0], end - begin)
        second = 1
        if first == shape[0]:
            second = min(shape[1] - position[1], (end - begin) // first)
        yield tuple(position), first, second
        begin += first * second


def sum_dims(x: F32, dims: Sequence[int], target: Target) -> F32:
    """Return the sum over ``dims``, each of which keeps length 1.

    Examples
    --------
    >>> sum_dims(np.ones((2, 3), np.float32), [1], Target()).shape
    (2, 1)
    """
    kept = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    out = np.zeros(kept, np.float32)
    if x.size == 0:
        return out
    nest = loops([np.broadcast_to(out, x.shape), x], reduction=True)
    shape = list(nest.shape)
    steps = [(own // 4, other // 4) for own, other in nest.strides]
    if len(shape) == 1:
        shape.append(1)
        steps.append((0, 0))
    threads = target.threads if x.size >= GRAIN else 1
    if threads > 1 and out.size == 1:
        parts = min(threads, -(-x.size // GRAIN))
        size = -(-x.size // parts)
        partial = np.zeros(threads, np.float32)
        for i, begin in enumerate(range(0, x.size, size)):
            share = np.zeros(1, np.float32)
            _accumulate(x, share, shape, steps, begin, min(begin + size, x.size))
            partial[i] = share[0]
        return sum_dims(partial, [0], Target()).reshape(kept)
    if threads > 1:
        _accumulate_columns(x, out, shape, steps, threads)
    else:
        _accumulate(x, out.reshape(-1), shape, steps, 0, x.size)
    return out


def _accumulate_columns(
    x: F32, out: F32, shape: list[int], steps: list[tuple[int, int]], threads: int
) -> None:
    """Split a kept dimension among threads: the outermost one with work for all of them."""
    kept = []
    for loop in reversed(range(len(shape))):
        if steps[loop][0] != 0:
            kept.append(loop)
        elif steps[loop][1] != 0:  # reduced; a loop that moves nothing is padding
            break
    best = next((d for d in kept if shape[d] >= threads), max(kept, key=lambda d: shape[d]))
    columns = shape[best]
    multiple = CACHE_LINE if steps[best][1] == 1 else 1
    size = -(-columns // min(threads, columns))
    for begin in range(0, columns, size):
        end = min(begin + size, columns)
        first = begin - begin % multiple
        last = end if end == columns else end - end % multiple
        if first < last:
            narrow = [*shape[:best], last - first, *shape[best + 1 :]]
            own, other = steps[best]
            _accumulate(
                x,
                out.reshape(-1),
                narrow,
                steps,
                0,
                int(np.prod(narrow)),
                first * own,
                first * other,
            )


def _accumulate(
    x: F32,
    out: F32,
    shape: list[int],
    steps: list[tuple[int, int]],
    begin: int,
    end: int,
    out_start: int = 0,
    x_start: int = 0,
) -> None:
    """Add the sums of a range of the loop nest to ``out``, one inner call after the other."""
    memory = _memory(x)
    for position, first, second in _blocks(shape, begin, end):
        to = out_start + sum(p * own for p, (own, _) in zip(position, steps, strict=True))
        at = x_start + sum(p * other for p, (_, other) in zip(position, steps, strict=True))
        (own_0, other_0), (own_1, other_1) = steps[0], steps[1]
        lengths = [first, second]
        if own_0 != 0 and own_1 == 0:
            (own_0, other_0), (own_1, other_1) = (own_1, other_1), (own_0, other_0)
            lengths.reverse()
        block = np.ndarray(lengths, np.float32, memory, at * 4, (other_0 * 4, other_1 * 4))
        into = np.ndarray(lengths, np.float32, out, to * 4, (own_0 * 4, own_1 * 4))
        if own_0 != 0:
            into += block
        elif own_1 != 0:
            into[0] += _block(block)
        else:
            into[0, 0] = _in_order(np.concatenate([into[0, :1], _block(block)]))


def _memory(x: F32) -> F32:
    """Return the memory behind ``x`` as a flat array that starts at its first element."""
    extent = 1 + sum((n - 1) * s // 4 for n, s in zip(x.shape, x.strides, strict=True))
    return np.lib.stride_tricks.as_strided(x, (extent,), (4,))
