"""The per-layer table of a graph."""

from __future__ import annotations

from refquant.ir.graph import Absent, Graph
from refquant.ir.qtensor import type_of
from refquant.ir.types import format_shape


def summarize(graph: Graph) -> list[dict[str, object]]:
    """Return one row a node: op, output type, quantization parameters, parameter count, path.

    Examples
    --------
    >>> summarize(Graph())
    []
    """
    sizes = {}
    for name, data in graph.parameters.items():
        kind = data.type if isinstance(data, Absent) else type_of(data)
        sizes[name] = _count(kind.shape)
    rows: list[dict[str, object]] = []
    for node in graph.nodes:
        kind = node.outputs[0].type
        qparams = kind.qparams
        per_tensor = qparams is not None and qparams.axis is None
        rows.append(
            {
                "node": node.name,
                "op": node.op,
                "output": f"{kind.dtype}{format_shape(kind.shape)}",
                "scale": qparams.scale if qparams and per_tensor else "",
                "zero_point": qparams.zero_point if qparams and per_tensor else "",
                "parameters": sum(sizes.get(v.name, 0) for v in node.inputs if v is not None),
                "module": node.origin.path if node.origin else "",
            }
        )
    return rows


def _count(shape: tuple[object, ...]) -> int:
    count = 1
    for size in shape:
        count *= size if isinstance(size, int) else 1
    return count
