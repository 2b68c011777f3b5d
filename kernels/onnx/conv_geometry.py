"""The attributes of ONNX's convolutions and pools: padding of each side, and automatic padding."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.types import Dim, Size
from refquant.kernels.walk import Window

Ints = tuple[int, ...]
# Of steps, and of the elements of a padded map: offsets into it fit in int64.
MOST = 2**31
AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


class Geometry(NamedTuple):
    """How outputs look at inputs, one entry per spatial axis.

    ``before`` and ``after`` are the padding; ``out`` is the size of the output map.
    """

    kernel: Ints
    stride: Ints
    dilation: Ints
    before: Ints
    after: Ints
    out: tuple[Any, ...]

    @property
    def window(self) -> Window:
        """The geometry as the compiled tiles take it."""
        ones = (1,) * len(self.kernel)
        return Window(self.kernel, self.stride, self.dilation, self.before, ones, self.out)


def geometry(
    op: str,
    sizes: tuple[Size, ...],
    kernel: Ints,
    auto_pad: str | bytes = "NOTSET",
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    ceil_mode: int = 0,
) -> Geometry:
    """Return the geometry of a map of ``sizes``; absent attributes have ONNX's defaults.

    With ``ceil_mode`` the last window may hang over the end, but it starts inside the map or its
    padding in front.

    Examples
    --------
    >>> geometry("conv", (5, 6), (3, 2), "SAME_UPPER", None, None, (2, 2))[3:]
    ((1, 0), (1, 0), (3, 3))
    """
    rank = len(sizes)
    stride = _each(op, "strides", strides, rank, 1, 1)
    dilation = _each(op, "dilations", dilations, rank, 1, 1)
    if len(kernel) != rank:
        raise VerifyError(f"{op}: kernel_shape needs {rank} entries, got {list(kernel)}")
    mode = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad or "NOTSET"
    if mode not in AUTO_PADS:
        raise VerifyError(f"{op}: auto_pad must be one of {', '.join(AUTO_PADS)}, got {mode!r}")
    both = _each(op, "pads", pads if mode == "NOTSET" else None, 2 * rank, 0, 0)
    before, after = both[:rank], both[rank:]
    lengths = zip(sizes, before, after, strict=True)
    padded = prod(n + first + last for n, first, last in lengths if isinstance(n, int))
    if padded > MOST:
        raise UnsupportedError(f"{op}: pads {list(both)} make a map of {padded} elements")
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if mode.startswith("SAME"):
        before, after = _same(op, sizes, spans, stride, mode == "SAME_LOWER")
    out: list[Any] = []
    for n, span, s, first, last in zip(sizes, spans, stride, before, after, strict=True):
        out.append(_windows(op, n, span, s, first, last, ceil_mode))
    return Geometry(tuple(kernel), stride, dilation, before, after, tuple(out))


def _each(
    op: str, name: str, values: Sequence[int] | None, count: int, default: int, least: int
) -> Ints:
    if values is None or len(values) == 0:
        return (default,) * count
    if len(values) != count:
        raise VerifyError(f"{op}: {name} needs {count} entries, got {list(values)}")
    if min(values) < least:
        raise VerifyError(f"{op}: {name} must be >= {least}, got {list(values)}")
    if max(values) > MOST:
        raise UnsupportedError(f"{op}: {name} must be <= {MOST}, got {list(values)}")
    return tuple(int(v) for v in values)


def _same(
    op: str, sizes: tuple[Size, ...], spans: Ints, stride: Ints, lower: bool
) -> tuple[Ints, Ints]:
    before, after = [], []
    for n, span, s in zip(sizes, spans, stride, strict=True):
        if isinstance(n, Dim):
            raise VerifyError(f"{op}: auto_pad needs known lengths, got {n}")
        total = max(0, (-(-n // s) - 1) * s + span - n)
        first = (total + 1) // 2 if lower else total // 2
        before.append(first)
        after.append(total - first)
    return tuple(before), tuple(after)


def _windows(op: str, n: Size, span: int, s: int, first: int, last: int, ceil_mode: int) -> Size:
    if isinstance(n, Dim):
        if span == s == 1 and first == last == 0:
            return n
        raise VerifyError(f"{op}: a window cannot slide along the symbolic length {n}")
    free = n + first + last - span
    if free < 0:
        raise VerifyError(f"{op}: a window of {span} does not fit in {n} + {first} + {last}")
    count = (free + (s - 1 if ceil_mode else 0)) // s + 1
    if ceil_mode and (count - 1) * s >= n + first:
        count -= 1
    return count
