"""One operator run by onnxruntime or by ``onnx.reference``, the oracles of the tests here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Operands = Sequence[Any]
# Types that arrays of the runtime cannot hold: they enter as constants and leave through a Cast.
_NARROW = {"float8", "float6", "float4", "int4", "uint4", "int2", "uint2", "bfloat16"}


def _is_narrow(dtype: Any) -> bool:
    return any(str(dtype).startswith(name) for name in _NARROW)


def model(
    name: str,
    operands: Operands,
    attributes: Mapping[str, Any],
    results: Sequence[int],
    constants: Sequence[int] = (),
    *,
    opset: int = 21,
    cast: bool = False,
) -> onnx.ModelProto:
    """Return a model of one node; ``results`` are the element types of its results."""
    domain, op = name.split("::")
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(operands)]
    while names and not names[-1]:
        names.pop()
    arrays = {n: np.asarray(x) for n, x in zip(names, operands, strict=False) if n}
    fixed = {
        n for i, n in enumerate(names) if n and (i in constants or _is_narrow(arrays[n].dtype))
    }
    outputs = [f"y{i}" for i in range(len(results))]
    domain_name = "" if domain == "onnx" else domain
    nodes = [helper.make_node(op, names, outputs, domain=domain_name, **attributes)]
    if cast:
        nodes += [helper.make_node("Cast", [y], [f"{y}c"], to=TensorProto.FLOAT) for y in outputs]
        outputs = [f"{y}c" for y in outputs]
        results = [TensorProto.FLOAT] * len(outputs)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
        for n, x in arrays.items()
        if n not in fixed
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        inputs,
        [helper.make_tensor_value_info(y, t, None) for y, t in zip(outputs, results, strict=True)],
        [numpy_helper.from_array(arrays[n], n) for n in arrays if n in fixed],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if opset < 23 else 11)


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Return onnxruntime's session with graph optimisation off and one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@lru_cache(maxsize=64)
def _session(serialized: bytes) -> onnxruntime.InferenceSession:
    return session(onnx.load_model_from_string(serialized))


def _fed(proto: onnx.ModelProto, operands: Operands) -> dict[str, Any]:
    return {i.name: np.asarray(operands[int(i.name[1:])]) for i in proto.graph.input}


def run_ort(
    name: str,
    operands: Operands,
    attributes: Mapping[str, Any] | None = None,
    results: Sequence[int] = (TensorProto.UINT8,),
    constants: Sequence[int] = (),
    *,
    opset: int = 21,
    cast: bool = False,
) -> Any:
    """Return what onnxruntime computes: one result, or a list of several."""
    proto = model(name, operands, attributes or {}, results, constants, opset=opset, cast=cast)
    found = _session(proto.SerializeToString()).run(None, _fed(proto, operands))
    return found[0] if len(found) == 1 else found


def run_reference(
    name: str,
    operands: Operands,
    attributes: Mapping[str, Any] | None = None,
    results: Sequence[int] = (TensorProto.UINT8,),
    *,
    opset: int = 21,
) -> Any:
    """Return what ``onnx.reference`` computes."""
    proto = model(name, operands, attributes or {}, results, range(len(operands)), opset=opset)
    found = ReferenceEvaluator(proto).run(None, {})
    return found[0] if len(found) == 1 else found
