"""Rules for functions and methods of tensors: arithmetic, shapes, indexing, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refquant.importers.builder import Rule
from refquant.importers.rules import Ints, TorchBuilder, ints, is_tensor, only, repeat
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.graph import Value
from refquant.ir.types import Dim, DType, element_count

# ---- arithmetic


def binary(op: str, reverse: str | None = None) -> Rule:
    """Return the rule of an op of two tensors, or of a tensor and a number.

    ``reverse`` is the op for a number on the left; None means the op commutes.
    """

    def rule(b: TorchBuilder, input: Any, other: Any, **attributes: Any) -> Value:
        attributes = {k: v for k, v in attributes.items() if v not in (None, 1)}
        if is_tensor(input) and is_tensor(other):
            return b.emit(op, input, other, **attributes)
        if is_tensor(input):
            return b.emit(f"{op}.Scalar", input, other=other, **attributes)
        if reverse is None:
            return b.emit(f"{op}.Scalar", other, other=input, **attributes)
        return b.emit(reverse, other, other=input, **attributes)

    return rule


def div(b: TorchBuilder, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """``torch.div``."""
    if is_tensor(input):
        return binary("aten::div")(b, input, other, rounding_mode=rounding_mode)
    only(rounding_mode is None, "a number divided by a tensor with rounding_mode")
    return b.emit("aten::mul.Scalar", b.emit("aten::reciprocal", other), other=input)


def power(b: TorchBuilder, input: Any, exponent: Any) -> Value:
    """``torch.pow`` and ``**``."""
    if is_tensor(input) and is_tensor(exponent):
        return b.emit("aten::pow.Tensor_Tensor", input, exponent)
    if is_tensor(input):
        return b.emit("aten::pow.Tensor_Scalar", input, exponent=exponent)
    return b.emit("aten::pow.Scalar", exponent, self=input)


def clamp(b: TorchBuilder, input: Value, min: Any = None, max: Any = None) -> Value:
    """``torch.clamp``; bounds are numbers."""
    only(not is_tensor(min) and not is_tensor(max), "clamp with tensor bounds")
    return b.emit("aten::clamp", input, min=min, max=max)


# ---- shapes


def size(b: TorchBuilder, input: Value, dim: int | None = None) -> Any:
    """``x.size()`` and ``x.shape``: a constant, symbolic in the batch."""
    return input.type.shape if dim is None else input.type.shape[dim]


def numel(b: TorchBuilder, input: Value) -> Any:
    """``x.numel()``."""
    return element_count(input.type.shape)


def reshape(b: TorchBuilder, input: Value, *shape: Any) -> Value:
    """``x.reshape(...)`` and ``torch.reshape``."""
    return b.emit("aten::reshape", input, shape=ints(shape))


def view(b: TorchBuilder, input: Value, *shape: Any) -> Value:
    """``x.view(...)``; a dtype argument reinterprets bytes, which is refused."""
    only(not isinstance(shape[0], DType), "view with a dtype")
    return b.emit("aten::view", input, size=ints(shape))


def view_as(b: TorchBuilder, input: Value, other: Value) -> Value:
    """``x.view_as(y)`` and ``x.reshape_as(y)``."""
    return b.emit("aten::reshape", input, shape=other.type.shape)


def flatten(b: TorchBuilder, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """``torch.flatten``."""
    return b.emit("aten::flatten", input, start_dim=start_dim, end_dim=end_dim)


def unflatten(b: TorchBuilder, input: Value, dim: int, sizes: Sequence[int]) -> Value:
    """``x.unflatten(dim, sizes)``."""
    shape = input.type.shape
    dim %= len(shape)
    return b.emit("aten::reshape", input, shape=(*shape[:dim], *sizes, *shape[dim + 1 :]))


def permute(b: TorchBuilder, input: Value, *dims: Any) -> Value:
    """``x.permute(...)``."""
    return b.emit("aten::permute", input, dims=ints(dims))


def transpose(b: TorchBuilder, input: Value, dim0: int, dim1: int) -> Value:
    """``x.transpose(dim0, dim1)``."""
    return b.emit("aten::transpose", input, dim0=dim0, dim1=dim1)


def matrix_transpose(b: TorchBuilder, input: Value) -> Value:
    """``x.t()``, ``x.T`` and ``x.mT``."""
    if input.type.rank < 2:
        return b.emit("aten::alias", input)
    return b.emit("aten::transpose", input, dim0=-2, dim1=-1)


def squeeze(b: TorchBuilder, input: Value, dim: Any = None) -> Value:
    """``x.squeeze(dim)``."""
    return b.emit("aten::squeeze", input, dim=tuple(dim) if isinstance(dim, list) else dim)


def unsqueeze(b: TorchBuilder, input: Value, dim: int) -> Value:
    """``x.unsqueeze(dim)``."""
    return b.emit("aten::unsqueeze", input, dim=dim)


def expand(b: TorchBuilder, input: Value, *size: Any) -> Value:
    """``x.expand(...)``."""
    return b.emit("aten::expand", input, size=ints(size))


def expand_as(b: TorchBuilder, input: Value, other: Value) -> Value:
    """``x.expand_as(y)``."""
    return b.emit("aten::expand", input, size=other.type.shape)


def repeat_tensor(b: TorchBuilder, input: Value, *repeats: Any) -> Value:
    """``x.repeat(...)``."""
    return b.emit("aten::repeat", input, repeats=ints(repeats))


def roll(b: TorchBuilder, input: Value, shifts: Ints, dims: Ints | None = None) -> Value:
    """``torch.roll``."""
    only(dims is not None, "roll without dims")
    return b.emit("aten::roll", input, shifts=repeat(shifts, 1), dims=repeat(dims or (), 1))


def flip(b: TorchBuilder, input: Value, *dims: Any) -> Value:
    """``torch.flip``."""
    return b.emit("aten::flip", input, dims=ints(dims))


def contiguous(b: TorchBuilder, input: Value, memory_format: str = "contiguous_format") -> Value:
    """``x.contiguous(memory_format)``."""
    return b.emit("aten::contiguous", input, memory_format=memory_format)


def cast(b: TorchBuilder, input: Value, dtype: DType) -> Value:
    """``x.to(dtype)``."""
    return b.emit("aten::to", input, dtype=dtype)


def to(b: TorchBuilder, input: Value, *args: Any, dtype: Any = None, **options: Any) -> Value:
    """``x.to(...)``: a dtype, another tensor's dtype, or a device (nothing to do)."""
    for arg in (*args, dtype):
        if isinstance(arg, DType):
            return cast(b, input, arg)
        if is_tensor(arg):
            return cast(b, input, arg.type.dtype)
    memory_format = options.get("memory_format")
    if memory_format not in (None, "preserve_format"):
        return contiguous(b, input, memory_format)
    return b.emit("aten::alias", input)


def identity(b: TorchBuilder, input: Value, *args: Any, **options: Any) -> Value:
    """Return the argument, as do: ``detach``, ``requires_grad_`` and the like."""
    return b.emit("aten::alias", input)


def cat(
    b: TorchBuilder, tensors: Sequence[Value], dim: int = 0, *, axis: int | None = None
) -> Value:
    """``torch.cat``."""
    return b.emit("aten::cat", *tensors, dim=dim if axis is None else axis)


def stack(b: TorchBuilder, tensors: Sequence[Value], dim: int = 0) -> Value:
    """``torch.stack``."""
    return b.emit("aten::stack", *tensors, dim=dim)


def split(
    b: TorchBuilder, tensor: Value, split_size_or_sections: Any, dim: int = 0, **alias: Any
) -> Any:
    """``torch.split``, by a length or by lengths."""
    length = tensor.type.shape[dim]
    sizes = split_size_or_sections
    if isinstance(sizes, int):
        only(isinstance(length, int), f"split along the symbolic length {length}")
        assert isinstance(length, int)
        whole, rest = divmod(length, sizes)
        sizes = (sizes,) * whole + ((rest,) if rest or not whole else ())
    return b.emit_all("aten::split_with_sizes", tensor, split_sizes=tuple(sizes), dim=dim)


def chunk(b: TorchBuilder, input: Value, chunks: int, dim: int = 0) -> Any:
    """``torch.chunk``."""
    length = input.type.shape[dim]
    if isinstance(length, Dim):
        raise UnsupportedError(f"chunk along the symbolic length {length}")
    return split(b, input, max(1, -(-length // chunks)), dim)


def unbind(b: TorchBuilder, input: Value, dim: int = 0) -> Any:
    """``torch.unbind``."""
    return b.emit_all("aten::unbind", input, dim=dim)


def getitem(b: TorchBuilder, input: Any, index: Any) -> Any:
    """``x[index]``: select, slice, unsqueeze and index, applied from the left."""
    if not is_tensor(input):
        return input[index]
    index = tuple(index) if isinstance(index, tuple | list) else (index,)
    used = sum(1 for part in index if part is not None and part is not Ellipsis)
    result, dim = input, 0
    tensors: dict[int, Value] = {}
    for part in index:
        if part is Ellipsis:
            dim += input.type.rank - used
        elif part is None:
            result = b.emit("aten::unsqueeze", result, dim=dim)
            dim += 1
        elif isinstance(part, slice):
            if (part.start, part.stop, part.step) != (None, None, None):
                start, step = part.start or 0, part.step or 1
                result = b.emit(
                    "aten::slice", result, dim=dim, start=start, end=part.stop, step=step
                )
            dim += 1
        elif is_tensor(part):
            tensors[dim] = part
            dim += 1
        elif isinstance(part, int):
            result = b.emit("aten::select", result, dim=dim, index=part)
        else:
            raise UnsupportedError(f"indexing with {part!r}")
    if tensors:
        operands = [tensors.get(d) for d in range(max(tensors) + 1)]
        return b.emit("aten::index", result, *operands)
    return b.emit("aten::alias", input) if result is input else result


def get_attribute(b: TorchBuilder, input: Any, name: str) -> Any:
    """``getattr(x, name)``."""
    if name in ("shape", "dtype"):
        return getattr(input.type, name)
    if name in ("T", "mT"):
        return matrix_transpose(b, input)
    if name == "ndim":
        return input.type.rank
    if name in ("device", "requires_grad", "is_cuda", "is_quantized"):
        known = {"device": "cpu", "is_quantized": input.type.dtype.is_quantized}
        return known.get(name, False)
    raise UnsupportedError(f"attribute {name!r} of a tensor")


def is_float(b: TorchBuilder, input: Value) -> bool:
    """``x.is_floating_point()``."""
    return input.type.dtype.is_floating_point


def check(b: TorchBuilder, condition: Any, message: str = "") -> None:
    """``torch._assert`` on constants."""
    if not condition:
        raise VerifyError(f"assertion of the model fails: {message}")


# ---- reductions


def _dims(input: Value, dim: Any) -> tuple[int, ...]:
    if dim is None or dim == ():
        return tuple(range(input.type.rank))
    return repeat(dim, 1)


def reduce(op: str) -> Rule:
    """Return the rule of a reduction over any dims."""

    def rule(
        b: TorchBuilder, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None
    ) -> Value:
        if dtype is not None:
            input = cast(b, input, dtype)
        return b.emit(op, input, dim=_dims(input, dim), keepdim=keepdim)

    return rule


def argument(op: str) -> Rule:
    """Return the rule of ``argmax`` or ``argmin``."""

    def rule(
        b: TorchBuilder, input: Value, dim: int | None = None, keepdim: bool = False
    ) -> Value:
        return b.emit(op, input, dim=dim, keepdim=keepdim)

    return rule


def extreme(over: str, pair: str) -> Rule:
    """Return the rule of ``x.max(...)`` or ``x.min(...)``: of everything, or of two tensors."""

    def rule(b: TorchBuilder, input: Value, *args: Any, **options: Any) -> Any:
        if args and is_tensor(args[0]):
            return b.emit(pair, input, args[0])
        only(not args and not options, "max or min over one dim with indices")
        return b.emit(over, input, dim=_dims(input, None), keepdim=False)

    return rule


def variance(
    b: TorchBuilder,
    input: Value,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: int | None = None,
) -> Value:
    """``torch.var``; ``correction`` is the newer name of ``unbiased``."""
    return b.emit(
        "aten::var",
        input,
        dim=_dims(input, dim),
        correction=int(unbiased) if correction is None else correction,
        keepdim=keepdim,
    )


def norm(
    b: TorchBuilder,
    input: Value,
    p: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    **options: Any,
) -> Value:
    """``x.norm(p, dim)``."""
    order = 2.0 if p == "fro" else float(p)
    return b.emit(
        "aten::linalg_vector_norm", input, ord=order, dim=_dims(input, dim), keepdim=keepdim
    )


def topk(
    b: TorchBuilder, input: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Any:
    """``torch.topk``."""
    return b.emit_all("aten::topk", input, k=k, dim=dim, largest=largest, sorted=sorted)


def cumsum(b: TorchBuilder, input: Value, dim: int) -> Value:
    """``torch.cumsum``."""
    return b.emit("aten::cumsum", input, dim=dim)


def masked_fill(b: TorchBuilder, input: Value, mask: Value, value: Any) -> Value:
    """``x.masked_fill(mask, number)``."""
    return b.emit("aten::masked_fill.Scalar", input, mask, value=value)


def where(b: TorchBuilder, condition: Value, input: Value, other: Value) -> Value:
    """``torch.where`` of three tensors."""
    return b.emit("aten::where", condition, input, other)


def index_select(b: TorchBuilder, input: Value, dim: int, index: Value) -> Value:
    """``torch.index_select``."""
    return b.emit("aten::index_select", input, index, dim=dim)


def gather(b: TorchBuilder, input: Value, dim: int, index: Value) -> Value:
    """``torch.gather``."""
    return b.emit("aten::gather", input, index, dim=dim)


def attribute_op(op: str, name: str) -> Rule:
    """Return the rule of an op of one tensor and one attribute."""

    def rule(b: TorchBuilder, input: Value, value: Any) -> Value:
        return b.emit(op, input, **{name: value})

    return rule
