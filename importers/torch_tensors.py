"""Rules for functions and methods of tensors: arithmetic, shapes, indexing, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

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
    """``torch.clamp``; bounds are numbers or tensors."""
    if is_tensor(min):
        input, min = b.emit("aten::maximum", input, min), None
    if is_tensor(max):
        upper, max = max, None
        if min is not None:
            input, min = b.emit("aten::clamp", input, min=min, max=None), None
        return b.emit("aten::minimum", input, upper)
    return input if min is max is None else b.emit("aten::clamp", input, min=min, max=max)


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


def cast_to(dtype: DType) -> Rule:
    """Return the rule of ``x.float()`` and its relatives."""
    return lambda b, input, **options: cast(b, input, dtype)


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
    index = index if isinstance(index, tuple) else (index,)
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
        elif isinstance(part, list) and all(isinstance(i, int) for i in part):
            tensors[dim] = b.parameter("indices", np.asarray(part, np.int64))
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
    if isinstance(input, Found) and name in ("values", "indices"):
        return getattr(input, name)
    if name in ("shape", "dtype"):
        return getattr(input.type, name)
    if name in ("mT", "mH"):
        return matrix_transpose(b, input)
    if name in ("T", "H"):
        return b.emit("aten::permute", input, dims=tuple(range(input.type.rank))[::-1])
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


class Found(NamedTuple):
    """What ``x.max(dim)`` and ``x.topk(k)`` return."""

    values: Value
    indices: Value


def extreme(over: str, pair: str, along: str) -> Rule:
    """Return the rule of ``x.max(...)`` or ``x.min(...)``.

    Of everything, of two tensors, or along one dimension.
    """

    def rule(
        b: TorchBuilder, input: Value, dim: Any = None, keepdim: bool = False, *, other: Any = None
    ) -> Any:
        other = dim if is_tensor(dim) else other
        if is_tensor(other):
            return b.emit(pair, input, other)
        if dim is None and input.type.dtype.is_quantized:
            return b.emit(along.removesuffix(".dim"), input)
        if dim is None:
            return b.emit(over, input, dim=_dims(input, None), keepdim=False)
        return Found(*b.emit_all(along, input, dim=dim, keepdim=keepdim))

    return rule


def variance(
    b: TorchBuilder,
    input: Value,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: int | None = None,
    op: str = "aten::var",
) -> Value:
    """``torch.var``; ``correction`` is the newer name of ``unbiased``."""
    return b.emit(
        op,
        input,
        dim=_dims(input, dim),
        correction=int(unbiased) if correction is None else correction,
        keepdim=keepdim,
    )


def deviation(b: TorchBuilder, input: Value, *args: Any, **options: Any) -> Value:
    """``torch.std``: the root of the variance, or one op if quantized."""
    if input.type.dtype.is_quantized:
        return variance(b, input, *args, **options, op="aten::std")
    return b.emit("aten::sqrt", variance(b, input, *args, **options))


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
    return Found(*b.emit_all("aten::topk", input, k=k, dim=dim, largest=largest, sorted=sorted))


def sort(
    b: TorchBuilder,
    input: Value,
    dim: int = -1,
    descending: bool = False,
    *,
    stable: bool | None = None,
) -> Any:
    """``torch.sort``."""
    attributes = {"stable": stable, "dim": dim, "descending": descending}
    return Found(*b.emit_all("aten::sort.stable", input, **attributes))


def cumsum(b: TorchBuilder, input: Value, dim: int) -> Value:
    """``torch.cumsum``."""
    return b.emit("aten::cumsum", input, dim=dim)


def masked_fill(b: TorchBuilder, input: Value, mask: Value, value: Any) -> Value:
    """``x.masked_fill(mask, number)``."""
    return b.emit("aten::masked_fill.Scalar", input, mask, value=value)


def where(b: TorchBuilder, condition: Value, input: Any, other: Any) -> Value:
    """``torch.where``; a number becomes a tensor without dimensions."""
    tensor = next((x for x in (input, other) if is_tensor(x)), None)
    kind = np.dtype(np.float32) if tensor is None else tensor.type.dtype.storage
    operands = [
        x if is_tensor(x) else b.parameter("constant", np.asarray(x, kind)) for x in (input, other)
    ]
    return b.emit("aten::where", condition, *operands)


def index_select(b: TorchBuilder, input: Value, dim: int, index: Value) -> Value:
    """``torch.index_select``."""
    return b.emit("aten::index_select", input, index, dim=dim)


def gather(b: TorchBuilder, input: Value, dim: int, index: Value) -> Value:
    """``torch.gather``."""
    return b.emit("aten::gather", input, index, dim=dim)


def addmm(
    b: TorchBuilder, input: Value, mat1: Value, mat2: Value, *, beta: Any = 1, alpha: Any = 1
) -> Value:
    """``torch.addmm`` and ``torch.baddbmm``."""
    product = b.emit("aten::matmul", mat1, mat2)
    if alpha != 1:
        product = b.emit("aten::mul.Scalar", product, other=alpha)
    if beta != 1:
        input = b.emit("aten::mul.Scalar", input, other=beta)
    return b.emit("aten::add", input, product)


def new_full(
    b: TorchBuilder,
    input: Value,
    size: Any,
    fill_value: Any,
    *,
    dtype: DType | None = None,
    **options: Any,
) -> Value:
    """``x.new_full``."""
    return b.emit("aten::new_full", input, size=ints((size,)), fill_value=fill_value, dtype=dtype)


def new_filled(fill_value: Any) -> Rule:
    """Return the rule of ``x.new_zeros`` or ``x.new_ones``."""

    def rule(b: TorchBuilder, input: Value, *size: Any, **options: Any) -> Value:
        return new_full(b, input, ints(size), fill_value, dtype=options.get("dtype"))

    return rule


def filled_like(fill_value: Any) -> Rule:
    """Return the rule of ``torch.zeros_like`` or ``torch.ones_like``."""

    def rule(b: TorchBuilder, input: Value, **options: Any) -> Value:
        return new_full(b, input, input.type.shape, fill_value, dtype=options.get("dtype"))

    return rule


def full_like(b: TorchBuilder, input: Value, fill_value: Any, **options: Any) -> Value:
    """``torch.full_like``."""
    return new_full(b, input, input.type.shape, fill_value, dtype=options.get("dtype"))


def logical(name: str) -> Rule:
    """Return the rule of ``torch.logical_and`` and its relatives."""

    def rule(b: TorchBuilder, input: Value, other: Value) -> Value:
        return b.emit(f"aten::logical_{name}", input, other)

    return rule


def bitwise(name: str) -> Rule:
    """Return the rule of ``&``, ``|`` or ``^`` of two bool tensors."""

    def rule(b: TorchBuilder, input: Value, other: Value) -> Value:
        kinds = {x.type.dtype.name for x in (input, other)}
        only(kinds == {"bool"}, f"bitwise {name} of {' and '.join(sorted(kinds))}")
        return b.emit(f"aten::logical_{name}", input, other)

    return rule


def invert(b: TorchBuilder, input: Value) -> Value:
    """``~x`` of a bool tensor."""
    only(input.type.dtype.name == "bool", f"bitwise not of {input.type.dtype}")
    return b.emit("aten::logical_not", input)


def movedim(b: TorchBuilder, input: Value, source: Ints, destination: Ints) -> Value:
    """``torch.movedim``."""
    rank = input.type.rank
    sources = [d % rank for d in repeat(source, 1)]
    targets = [d % rank for d in repeat(destination, 1)]
    dims = [d for d in range(rank) if d not in sources]
    for place, dim in sorted(zip(targets, sources, strict=True)):
        dims.insert(place, dim)
    return b.emit("aten::permute", input, dims=tuple(dims))


def repeat_interleave(
    b: TorchBuilder, input: Value, repeats: int, dim: int | None = None, **options: Any
) -> Value:
    """``torch.repeat_interleave`` with one count for all."""
    only(isinstance(repeats, int), "repeat_interleave with a tensor of counts")
    if dim is None:
        input, dim = flatten(b, input), 0
    length = input.type.shape[dim]
    if not isinstance(length, int):
        raise UnsupportedError(f"repeat_interleave along the symbolic length {length}")
    index = b.parameter("indices", np.repeat(np.arange(length), repeats))
    return b.emit("aten::index_select", input, index, dim=dim)


def tile(b: TorchBuilder, input: Value, *dims: Any) -> Value:
    """``torch.tile``: a repeat that may name fewer dimensions."""
    given = ints(dims)
    return b.emit("aten::repeat", input, repeats=(1,) * (input.type.rank - len(given)) + given)


def unfold(b: TorchBuilder, input: Value, dimension: int, size: int, step: int) -> Value:
    """``x.unfold(dimension, size, step)``."""
    return b.emit("aten::unfold", input, dimension=dimension, size=size, step=step)


def attribute_op(op: str, name: str) -> Rule:
    """Return the rule of an op of one tensor and one attribute."""

    def rule(b: TorchBuilder, input: Value, value: Any) -> Value:
        return b.emit(op, input, **{name: value})

    return rule
