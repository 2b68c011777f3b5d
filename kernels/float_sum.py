"""``torch.sum`` of float32 on a CPU, in torch's order of additions.

Sums are cascaded: rows are added into an accumulator, which is emptied into a higher one after
``2**p`` rows, and so on for four levels. How elements are dealt to columns and lanes depends on
which strides are contiguous. The kernel has 8 lanes under every instruction set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.target import Target
from refquant.kernels.jit import jit
from refquant.kernels.pointwise import GRAIN
from refquant.kernels.row_sums import sum_rows
from refquant.kernels.tensor_iterator import loops

F32 = npt.NDArray[np.float32]
Block = Callable[[F32], F32]
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


def block(x: F32) -> F32:
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


@jit
def _cascade_one(x: Any, first: int, step: int, size: int, column: int) -> Any:
    """Return :func:`cascade` of the rows ``first + i * step`` of one column."""
    length, rest = 0, size - 1
    while rest > 0:
        rest >>= 1
        length += 1
    bits = max(4, max(1, length) // 4)
    block, mask = 1 << bits, (1 << bits) - 1
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    done = 0
    while done + block <= size:
        for i in range(done, done + block):
            a += x[first + i * step, column]
        done += block
        b += a
        a = np.float32(0)
        if done & (mask << bits) == 0:
            c += b
            b = np.float32(0)
            if done & (mask << (2 * bits)) == 0:
                d += c
                c = np.float32(0)
    for i in range(done, size):
        a += x[first + i * step, column]
    return np.float32(np.float32(np.float32(a + b) + c) + d)


@jit
def _columns_one(x: Any, first: int, step: int, size: int, column: int) -> Any:
    """Return :func:`_in_columns` of the rows ``first + i * step`` of one column."""
    quarter = size // 4
    total = _cascade_one(x, first, 4 * step, quarter, column)
    for i in range(4 * quarter, size):
        total += x[first + i * step, column]
    for k in range(1, 4):
        total += _cascade_one(x, first + k * step, 4 * step, quarter, column)
    return total


@jit
def _fill(x: Any, reduced_step: int, kept_step: int, out: F32) -> None:
    reduced, kept = x.shape
    if reduced_step == 1 and reduced >= 8:
        body = reduced // 8
        for k in range(kept):
            total = np.float32(0)
            for i in range(8 * body, reduced):
                total += x[i, k]
            for lane in range(8):
                total += _columns_one(x, lane, 8, body, k)
            out[k] = total
        return
    whole = kept // 4 * 4
    if kept_step == 1 and kept >= 8:
        whole = kept // 32 * 32
    elif reduced_step < kept_step:
        whole = 0
    for k in range(kept):
        if k < whole:
            out[k] = _cascade_one(x, 0, 1, reduced, k)
        else:
            out[k] = _columns_one(x, 0, 1, reduced, k)


def block_compiled(x: F32) -> F32:
    """Sum the first axis of (reduced, kept) as one call of torch's inner loop does, compiled."""
    out = np.empty(x.shape[1], np.float32)
    if x.flags.c_contiguous and x.shape[1] >= LANES and len(x) > 1:
        sum_rows(x, 1.0, 0, out)
    else:
        _fill(x, x.strides[0] // x.itemsize, x.strides[1] // x.itemsize, out)
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


def sum_dims(x: F32, dims: Sequence[int], target: Target, inner: Block = block) -> F32:
    """Return the sum over ``dims``, each of which keeps length 1.

    ``inner`` is one call of the inner loop: :func:`block` or :func:`block_compiled`.

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
            _accumulate(x, share, shape, steps, inner, begin, min(begin + size, x.size))
            partial[i] = share[0]
        return sum_dims(partial, [0], Target(), inner).reshape(kept)
    if threads > 1:
        _accumulate_columns(x, out, shape, steps, inner, threads)
    else:
        _accumulate(x, out.reshape(-1), shape, steps, inner, 0, x.size)
    return out


def total(x: F32, target: Target) -> np.float32:
    """Return the sum of a vector.

    Examples
    --------
    >>> float(total(np.full(100, 0.1, np.float32), Target()))
    9.999999046325684
    """
    return np.float32(sum_dims(x, [0], target)[0])


@jit
def _total_of_share(x: F32) -> Any:
    """Return the sum of a vector in one thread, as :func:`_contiguous`, 32 columns at a time."""
    if x.size < 8:
        return np.float32(np.float32(0) + _columns_one(x.reshape(-1, 1), 0, 1, x.size, 0))
    body = x.size // 8
    rows = body // 4
    length, rest = 0, rows - 1
    while rest > 0:
        rest >>= 1
        length += 1
    bits = max(4, max(1, length) // 4)
    block, mask = 1 << bits, (1 << bits) - 1
    levels = np.zeros((4, 32), np.float32)
    done = 0
    while done < rows:
        end = min(done + block, rows)
        for i in range(done, end):
            for j in range(32):
                levels[0, j] += x[32 * i + j]
        if end - done < block:
            break
        done = end
        for level in range(1, 4):
            for j in range(32):
                levels[level, j] += levels[level - 1, j]
                levels[level - 1, j] = np.float32(0)
            if done & (mask << (level * bits)):
                break
    for level in range(1, 4):
        for j in range(32):
            levels[0, j] += levels[level, j]
    lanes = levels[0]
    for i in range(4 * rows, body):
        for lane in range(8):
            lanes[lane] += x[8 * i + lane]
    for column in range(1, 4):
        for lane in range(8):
            lanes[lane] += lanes[8 * column + lane]
    result = np.float32(0)
    for i in range(8 * body, x.size):
        result += x[i]
    for lane in range(8):
        result += lanes[lane]
    return result


@jit
def total_compiled(x: F32, threads: int) -> Any:
    """Compute :func:`total` of a contiguous vector, compiled and callable from compiled code."""
    if threads == 1 or x.size < GRAIN:
        return _total_of_share(x)
    parts = min(threads, (x.size + GRAIN - 1) // GRAIN)
    size = (x.size + parts - 1) // parts
    partial = np.zeros(threads, np.float32)
    for i in range(parts):
        share = x[i * size : min((i + 1) * size, x.size)]
        if share.size:
            partial[i] = _total_of_share(share)
    return _total_of_share(partial)


def _accumulate_columns(
    x: F32,
    out: F32,
    shape: list[int],
    steps: list[tuple[int, int]],
    inner: Block,
    threads: int,
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
                inner,
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
    inner: Block,
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
        part = np.ndarray(lengths, np.float32, memory, at * 4, (other_0 * 4, other_1 * 4))
        into = np.ndarray(lengths, np.float32, out, to * 4, (own_0 * 4, own_1 * 4))
        if own_0 != 0:
            into += part
        elif own_1 != 0:
            into[0] += inner(part)
        else:
            into[0, 0] = _in_order(np.concatenate([into[0, :1], inner(part)]))


def _memory(x: F32) -> F32:
    """Return the memory behind ``x`` as a flat array that starts at its first element."""
    extent = 1 + sum((n - 1) * s // 4 for n, s in zip(x.shape, x.strides, strict=True))
    return np.lib.stride_tricks.as_strided(x, (extent,), (4,))
