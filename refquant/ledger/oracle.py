"""Calling torch's operators with refquant's operands and attributes.

Operands and attributes are those of our ops. Where torch's op takes packed parameters, weight
and bias are packed first, by the engine in force.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed

from refquant.importers import fx_torch
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.types import DType, QScheme, quint8

# Operators whose weight is packed into a tensor: what packs it, and which operands it takes.
_PACKED_TENSORS = {
    "wrapped_fbgemm_linear_fp16_weight": ("wrapped_fbgemm_pack_gemm_matrix_fp16", 1, 2),
    "_wrapped_quantized_linear_prepacked": ("_wrapped_linear_prepack", 3, 7),
}
_GEOMETRY = ("stride", "padding", "output_padding", "dilation")


def to_torch(value: Any) -> Any:
    """Turn an array, QTensor, DType or QScheme into torch's, keeping strides."""
    if isinstance(value, QTensor | np.ndarray):
        return fx_torch.to_torch(value)
    if isinstance(value, DType):
        return getattr(torch, value.name)
    return getattr(torch, value.value) if isinstance(value, QScheme) else value


def from_torch(value: Any) -> Any:
    """Turn torch's result into arrays and QTensors."""
    if isinstance(value, tuple | list):
        return tuple(map(from_torch, value))
    return fx_torch.to_tensor(value) if isinstance(value, torch.Tensor) else value


def call_torch(name: str, operands: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """Run ``namespace::op`` or ``namespace::op.overload`` of torch."""
    namespace, _, op = name.partition("::")
    packet, _, overload = op.partition(".")
    function = getattr(getattr(torch.ops, namespace), packet)
    if overload:
        function = getattr(function, overload)
    keywords = {key: to_torch(value) for key, value in attributes.items()}
    arguments = list(map(to_torch, operands))
    if packet in _PACKED_TENSORS:
        pack, first, last = _PACKED_TENSORS[packet]
        packed = getattr(torch.ops._quantized, pack)(*arguments[first:last])
        rest = (*arguments[last:], *keywords.values())
        return from_torch(function(*arguments[:first], packed, *rest))
    schema = _schema(function, len(operands), set(attributes))
    if str(schema[0].type).endswith("EmbeddingPackedParamsBase"):
        held = packed_table(operands[0])  # what is unpacked shares its memory
        given = dict(zip([x.name for x in schema if _is_tensor(x)], arguments[1:], strict=False))
        return deepcopy(from_torch(function(held, **given, **keywords)))
    if any("PackedParamsBase" in str(x.type) for x in schema):
        return from_torch(function(*_packed_arguments(packet, schema, arguments, keywords)))
    if namespace == "onednn":
        return from_torch(function(**_packed_for_onednn(packet, schema, arguments, keywords)))
    lists = [x.name for x in schema if str(x.type) in ("List[Tensor]", "List[Optional[Tensor]]")]
    if lists:  # of as many operands as are left
        single = [x.name for x in schema if str(x.type) == "Tensor"]
        named = dict(zip(single, arguments, strict=False))
        return from_torch(function(**named, **{lists[0]: arguments[len(single) :]}, **keywords))
    tensors = [x.name for x in schema if _is_tensor(x)][: len(operands)]
    if tensors == [x.name for x in schema[: len(operands)]]:
        return from_torch(function(*arguments, **keywords))
    return from_torch(function(**dict(zip(tensors, arguments, strict=True)), **keywords))


def _schema(function: Any, operands: int, attributes: set[str]) -> Any:
    """Return the arguments of the overload that takes these attributes, or of the first one."""
    if isinstance(function, torch._ops.OpOverload):
        return function._schema.arguments
    schemas = [getattr(function, name)._schema.arguments for name in function.overloads()]
    for schema in schemas:
        tensors = sum(operands if "List" in str(x.type) else 1 for x in schema if _is_tensor(x))
        if attributes <= {x.name for x in schema} and tensors >= operands:
            return schema
    return schemas[0]


def _is_tensor(argument: Any) -> bool:
    return "Tensor" in str(argument.type)


def _packed_arguments(
    op: str, schema: Any, tensors: list[Any], keywords: dict[str, Any]
) -> list[Any]:
    """Return the arguments of an op with packed parameters, in the order of its schema.

    Operands 1 and 2 are the weight and the bias.
    """
    stem = op.partition("_with_input")[0]
    for part in ("_relu", "_dynamic", "_leaky", "_tanh", "_add"):
        stem = stem.replace(part, "")
    if stem == "linear_fp16":
        stem, function = "linear", torch.ops.quantized.linear_prepack_fp16
    else:
        function = getattr(torch.ops.quantized, f"{stem}_prepack")
    geometry = [list(keywords[key]) for key in _GEOMETRY if key in keywords]
    groups = [keywords["groups"]] if "groups" in keywords else []
    x, weight, bias, *others = tensors
    packed = function(weight, bias, *geometry, *groups)
    rest = [value for key, value in keywords.items() if key not in (*_GEOMETRY, "groups")]
    placed: list[Any] = [x]
    for argument in schema[1:]:
        if "PackedParamsBase" in str(argument.type):
            placed.append(packed)
        elif _is_tensor(argument):
            placed.append(others.pop(0))
        elif rest:
            placed.append(rest.pop(0))
    return placed


def _packed_for_onednn(
    op: str, schema: Any, tensors: list[Any], keywords: dict[str, Any]
) -> dict[str, Any]:
    """Return named arguments with the weight packed; what torch writes to is a copy."""
    names = [x.name for x in schema if _is_tensor(x)]
    named = {**dict(zip(names, tensors, strict=True)), **keywords}
    for name in ("other", "qaccum"):
        if named.get(name) is not None:
            named[name] = named[name].clone()
    pack = torch.ops.onednn
    if op.startswith("qlinear"):
        named["qw"] = pack.qlinear_prepack(named["qw"], None)
    elif op.startswith("qconv"):
        scale, zero_point = (named[name] for name in ("x_scale", "x_zero_point"))
        geometry = [list(named[key]) for key in ("stride", "padding", "dilation")]
        numbers = (float(scale), int(zero_point), *geometry, named["groups"])
        named["qw"] = pack.qconv_prepack(named["qw"], named["w_scale"], *numbers)
    elif "fp16" in op:
        named["w"] = pack.linear_prepack_fp16(named["w"], None)
    return named


def packed_table(table: QTensor) -> Any:
    """Return a table as torch packs it."""
    x = np.asarray(table.int_repr)
    if table.dtype == quint8:
        weight = to_torch(table)
    else:  # made from values of which every one is far from a tie
        parts = (np.float32(1) * x, np.ones(len(x), np.float32), np.zeros(len(x), np.float32))
        weight = torch.quantize_per_channel(*map(torch.from_numpy, parts), 0, torch.quint4x2)
        weight.q_per_channel_scales().copy_(torch.from_numpy(table.scale))
        weight.q_per_channel_zero_points().copy_(torch.from_numpy(table.zero_point))
    return torch.ops.quantized.embedding_bag_prepack(weight)


def this_machine() -> Target:
    """Return the target whose bits the installed torch gives here, on one thread.

    Under ``ATEN_CPU_CAPABILITY=avx2`` or ``default`` that is another one.
    """
    isa = {"AVX512": Isa.AVX512_VNNI, "AVX2": Isa.AVX2, "DEFAULT": Isa.DEFAULT}
    return Target(Engine.FBGEMM, isa[torch.backends.cpu.get_cpu_capability()], 1)


@contextmanager
def torch_as(target: Target) -> Iterator[None]:
    """Let torch use the engine and the number of threads of a target."""
    engines = torch.backends.quantized
    before = torch.get_num_threads(), engines.engine
    torch.set_num_threads(target.threads)
    engines.engine = str(target.engine)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        engines.engine = before[1]


# What libc10 knows of the processor: where these flags stand in its table.
_FLAGS_OF_AVX512 = {0x1D: "avx512f", 0x21: "avx512dq", 0x22: "avx512bw", 0x23: "avx512vl"}
_FLAG_OF_VNNI = 0x29


def hide(isa: Isa) -> None:
    """Let torch's libraries take this processor for one without VNNI, or without AVX512.

    The environment does not reach all that ask: engine x86 when it packs a convolution, fbgemm's
    groupwise kernels. Both read the table that this changes. To be called before the first
    quantized operator.
    """
    hidden = {Isa.AVX512: (_FLAG_OF_VNNI,), Isa.AVX2: (_FLAG_OF_VNNI, *_FLAGS_OF_AVX512)}
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    library.cpuinfo_initialize()
    flags = (ctypes.c_ubyte * 0x40).in_dll(library, "cpuinfo_isa")
    for flag in hidden.get(isa, ()):
        flags[flag] = 0


def names() -> dict[str, list[str]]:
    """Return every operator name that torch has, by namespace, overloads included.

    ``aten`` stands for the aten operators with a kernel for quantized CPU tensors.
    """
    found: dict[str, set[str]] = {
        key: set() for key in ("quantized", "_quantized", "onednn", "quantized_decomposed")
    }
    for schema in torch._C._jit_get_all_schemas():
        namespace = schema.name.partition("::")[0]
        if namespace in found:
            overload = f".{schema.overload_name}" if schema.overload_name else ""
            found[namespace].add(schema.name + overload)
    kernels = torch._C._dispatch_get_registrations_for_dispatch_key("QuantizedCPU")
    found["aten"] = {name for name in kernels if name.startswith("aten::")}
    return {namespace: sorted(group) for namespace, group in found.items()}
