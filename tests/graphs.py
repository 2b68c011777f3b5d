"""Random and hand-made graphs for the tests of the IR."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from refquant.ir.graph import Graph, Node, Origin, Scope, Value
from refquant.ir.module import Module
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.types import (
    DTYPES,
    Dim,
    QParams,
    TensorType,
    float32,
    qint8,
    quint8,
)

NAMES = st.one_of(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,8}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALES = st.floats(1e-30, 1e30)
DIMS = st.builds(Dim, st.sampled_from(["N", "M"]), st.integers(1, 9))
ATTRIBUTES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63),
        st.floats(allow_nan=False),
        TEXT,
        st.sampled_from(list(DTYPES.values())),
        DIMS,
    ),
    lambda children: st.lists(children, max_size=3).map(tuple),
    max_leaves=6,
)


@st.composite
def qparams(draw: st.DrawFn, channels: int | None = None) -> QParams:
    if channels is None:
        return QParams(draw(SCALES), draw(st.integers(0, 255)))
    scales = draw(st.lists(SCALES, min_size=channels, max_size=channels))
    points = draw(st.lists(st.integers(-128, 127), min_size=channels, max_size=channels))
    return QParams(tuple(scales), tuple(points), 0)


@st.composite
def types(draw: st.DrawFn) -> TensorType:
    shape = tuple(draw(st.lists(st.one_of(st.integers(0, 5), DIMS), max_size=4)))
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    return TensorType(dtype, shape, draw(qparams()) if dtype == quint8 else None)


@st.composite
def origins(draw: st.DrawFn) -> Origin:
    kind = draw(st.sampled_from(["call_module", "call_function", "call_method", "onnx"]))
    scope = draw(st.lists(st.builds(Scope, TEXT, TEXT), max_size=2))
    return Origin(kind, draw(TEXT), draw(TEXT), draw(TEXT), tuple(scope))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph that the text can express; its ops need not exist."""
    names = draw(st.lists(NAMES, min_size=12, max_size=12, unique=True))
    graph = Graph(provenance=draw(st.dictionaries(TEXT, TEXT, max_size=2)))
    values: list[Value] = []
    for _ in range(draw(st.integers(0, 2))):
        graph.inputs.append(Value(names.pop(), draw(types())))
    values += graph.inputs
    for _ in range(draw(st.integers(0, 2))):
        data: Any = np.array(draw(st.lists(st.integers(-9, 9), max_size=4)), np.int8)
        if draw(st.booleans()):
            q = draw(qparams(len(data)))
            data = QTensor(data, np.array(q.scale), np.array(q.zero_point, np.int64), 0, qint8)
        name = names.pop()
        graph.parameters[name] = data
        values.append(Value(name, type_of(data)))
    config = st.dictionaries(st.sampled_from(["bins", "eps", "dtype"]), ATTRIBUTES, max_size=2)
    for _ in range(draw(st.integers(0, 1))):
        state = {draw(TEXT): np.arange(3, dtype=np.float32)}
        graph.modules[names.pop()] = Module(draw(TEXT), draw(config), state)
    for _ in range(draw(st.integers(0, 4))):
        choices = [None, *values]
        inputs = tuple(draw(st.lists(st.sampled_from(choices), max_size=3)))
        keys = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
        attributes = draw(st.dictionaries(keys, ATTRIBUTES, max_size=3))
        outputs = tuple(Value(names.pop(), draw(types())) for _ in range(draw(st.integers(1, 2))))
        origin = draw(st.none() | origins())
        graph.nodes.append(Node("aten::made_up", inputs, attributes, outputs, origin))
        values += outputs
        if len(names) < 3:
            break
    if values:
        graph.outputs = tuple(draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)))
        leaves = st.integers(0, len(graph.outputs) - 1) | st.none()
        graph.returns = draw(
            st.recursive(
                leaves,
                lambda part: (
                    st.lists(part, max_size=2)
                    | st.lists(part, max_size=2).map(tuple)
                    | st.dictionaries(TEXT, part, max_size=2)
                ),
                max_leaves=4,
            )
        )
    return graph


def chain(*ops: tuple[str, dict[str, Any]], shape: tuple[Any, ...] = (Dim("N"), 4)) -> Graph:
    """A verified chain of one-operand ops on a float32 input."""
    value = Value("x", TensorType(float32, shape))
    graph = Graph(inputs=[value])
    for i, (op, attributes) in enumerate(ops):
        kind = OPS[op].infer(value.type, **attributes)
        assert isinstance(kind, TensorType)
        result = Value(f"v{i}", kind)
        graph.nodes.append(Node(op, (value,), attributes, (result,)))
        value = result
    graph.outputs = (value,)
    graph.verify()
    return graph


def quantize(scale: float = 0.5, zero_point: int = 7) -> tuple[str, dict[str, Any]]:
    return (
        "aten::quantize_per_tensor",
        {"scale": scale, "zero_point": zero_point, "dtype": quint8},
    )
