"""Rules of pools, and how ONNX pads windows."""

from __future__ import annotations

from typing import Any

from refquant.importers.onnx_builder import Known, OnnxBuilder, Operand, Rule
from refquant.ir.errors import VerifyError
from refquant.ir.types import float32
from refquant.kernels.checks import known_length

Ints = tuple[int, ...]


def padding(
    b: OnnxBuilder, x: Known, kernel: Ints, strides: Ints, dilations: Ints
) -> tuple[Ints, Ints]:
    """Return the paddings before and behind each spatial axis, as ``auto_pad`` or ``pads`` say."""
    rank = len(kernel)
    auto = b.get("auto_pad", "NOTSET")
    spatial = x.type.shape[2:]
    fits = len(spatial) == len(strides) == len(dilations) == rank
    if not fits or min((*kernel, *strides, *dilations), default=1) < 1:
        raise VerifyError(f"kernel, strides and dilations do not fit the input {x.type}")
    if auto in ("NOTSET", "VALID", ""):
        pads = (b.get("pads") if auto != "VALID" else None) or (0,) * 2 * rank
        if len(pads) != 2 * rank or min(pads) < 0:
            raise VerifyError(f"pads must be {2 * rank} lengths, got {pads}")
        return tuple(pads[:rank]), tuple(pads[rank:])
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise VerifyError(f"auto_pad {auto!r}")
    begins, ends = [], []
    for i, (n, k, s, d) in enumerate(zip(spatial, kernel, strides, dilations, strict=True)):
        length = known_length(b.node.op, n, i + 2)
        total = max(0, (-(-length // s) - 1) * s + d * (k - 1) + 1 - length)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return tuple(begins), tuple(ends)


class _Window:
    """The window that the node in hand asks for."""

    def __init__(self, b: OnnxBuilder, x: Known) -> None:
        self.kernel: Ints = tuple(b.get("kernel_shape"))
        rank = len(self.kernel)
        self.strides: Ints = tuple(b.get("strides") or (1,) * rank)
        self.dilations: Ints = tuple(b.get("dilations") or (1,) * rank)
        self.begins, self.ends = padding(b, x, self.kernel, self.strides, self.dilations)
        self.ceil_mode = bool(b.get("ceil_mode", 0))
        centred = all(2 * p <= k for p, k in zip(self.begins, self.kernel, strict=True))
        # torch's pools pad both ends alike, by half a window at most.
        self.is_plain = (
            *(x.type.dtype == float32 and rank in (1, 2, 3) and x.type.rank == rank + 2,),
            *(self.begins == self.ends, centred, not self.ceil_mode),
        ) == (True,) * 4

    @property
    def how(self) -> dict[str, Any]:
        """Attributes of our own op."""
        return {
            **{"kernel_shape": self.kernel, "strides": self.strides},
            **{"dilations": self.dilations, "pads": (*self.begins, *self.ends)},
            "ceil_mode": self.ceil_mode,
        }


def _average(b: OnnxBuilder, x: Known) -> Known:
    counts = bool(b.get("count_include_pad", 0))
    return b.emit("onnx::AveragePool", x, **_Window(b, x).how, count_include_pad=counts)


def _max(b: OnnxBuilder, x: Known) -> Any:
    window = _Window(b, x)
    if len(b.node.outputs) > 1:
        order = b.get("storage_order", 0)
        return list(b.emit_all("onnx::MaxPool.indices", x, **window.how, storage_order=order))
    if not window.is_plain:
        return b.emit("onnx::MaxPool", x, **window.how)
    return b.emit(
        f"aten::max_pool{len(window.kernel)}d",
        x,
        **{"kernel_size": window.kernel, "stride": window.strides, "padding": window.begins},
        **{"dilation": window.dilations, "ceil_mode": False},
    )


def _lp(b: OnnxBuilder, x: Known) -> Known:
    return b.emit("onnx::LpPool", x, **_Window(b, x).how, p=int(b.get("p")))


def whole(b: OnnxBuilder, x: Known) -> Ints:
    """Return the spatial lengths, which may not depend on the batch."""
    return tuple(known_length(b.node.op, n, i + 2) for i, n in enumerate(x.type.shape[2:]))


def _everything(spatial: Ints) -> dict[str, Any]:
    ones = (1,) * len(spatial)
    return {
        **{"kernel_shape": spatial, "strides": ones, "dilations": ones},
        **{"pads": (0,) * 2 * len(spatial), "ceil_mode": False},
    }


def _global_max(b: OnnxBuilder, x: Known) -> Known:
    return b.emit("onnx::MaxPool", x, **_everything(whole(b, x)))


def _global_lp(b: OnnxBuilder, x: Known) -> Known:
    return b.emit("onnx::LpPool", x, **_everything(whole(b, x)), p=int(b.get("p")))


def _max_unpool(b: OnnxBuilder, x: Known, indices: Known, shape: Operand = None) -> Known:
    kernel = tuple(b.get("kernel_shape"))
    rank = len(kernel)
    strides = b.get("strides") or (1,) * rank
    pads = b.get("pads") or (0,) * 2 * rank
    b.only(shape is None or not any(pads), "an output shape beside paddings")
    axes = zip(whole(b, x), kernel, strides, pads[:rank], pads[rank:], strict=True)
    inner = (*x.type.sizes[:2], *((n - 1) * s - p - q + k for n, k, s, p, q in axes))
    y = b.emit("onnx::MaxUnpool", x, indices, output_shape=inner)
    if shape is None:
        return y
    # Positions count in the smallest result; what is asked for beyond it is 0.
    missing = [n - m for n, m in zip(b.integers(shape, "the output shape"), inner, strict=True)]
    flat = tuple(n for after in missing[::-1] for n in (0, after))
    return b.emit("aten::pad", y, pad=flat, mode="constant", value=0.0)


def _roi_align(b: OnnxBuilder, x: Known, rois: Known, images: Known) -> Known:
    names = ("mode", "output_height", "output_width", "sampling_ratio", "spatial_scale")
    # Before opset 16 pixels lay at whole numbers.
    half_pixel = b.get("coordinate_transformation_mode", "output_half_pixel") == "half_pixel"
    how = {name: b.get(name) for name in names}
    return b.emit("onnx::RoiAlign", x, rois, images, **how, half_pixel=half_pixel)


POOLS: dict[str, Rule] = {
    "AveragePool": _average,
    "GlobalAveragePool": lambda b, x: b.emit("onnx::GlobalAveragePool", x),
    "GlobalLpPool": _global_lp,
    "GlobalMaxPool": _global_max,
    "LpPool": _lp,
    "MaxPool": _max,
    "MaxUnpool": _max_unpool,
    "RoiAlign": _roi_align,
}
