"""refquant as an ONNX back end: ``onnx.backend.base`` for anyone's test runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict
from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info

from refquant.importers.onnx import DataDependentError, from_onnx
from refquant.importers.onnx_file import code_of, tensor
from refquant.ir.errors import VerifyError
from refquant.ir.graph import Graph
from refquant.ir.target import Target
from refquant.ir.types import dtype_of


class RefquantRep(BackendRep):
    """A model ready to run; graphs are made as shapes of inputs are seen.

    Where a shape or a branch depends on an input's values, the inputs are bound to them and the
    model is read again for each run.
    """

    def __init__(self, model: Any, target: str) -> None:
        self.model = model
        self.target = target
        initial = {tensor.name for tensor in model.graph.initializer}
        self.names = [x.name for x in model.graph.input if x.name not in initial]
        self._graphs: dict[Any, Graph | None] = {}

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run on arrays, in the order of the model's inputs or by their names.

        Returns
        -------
        namedtuple
            One array, list of arrays or None for each output.
        """
        given = self._by_name(inputs)
        plain = all(isinstance(x, np.ndarray) for x in given.values())
        key = tuple((x.shape, x.dtype) for x in given.values()) if plain else None
        if plain and key not in self._graphs:
            self._graphs[key] = self._graph({name: x.shape for name, x in given.items()})
        graph = self._graphs.get(key) if plain else None
        if graph is None:
            graph = from_onnx(self.model, constants=given, target=self.target)
            result = graph()
        else:
            result = graph(*given.values())
        outputs = [output.name for output in self.model.graph.output]
        values = (result,) if len(outputs) == 1 else result
        return namedtupledict("Outputs", outputs)(*values)  # type: ignore[no-any-return]

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        if not isinstance(inputs, dict):
            if len(inputs) > len(self.names):
                raise VerifyError(f"expected {len(self.names)} inputs, got {len(inputs)}")
            inputs = dict(zip(self.names, inputs, strict=False))
        return {name: as_array(inputs[name]) for name in self.names if name in inputs}

    def _graph(self, shapes: dict[str, tuple[int, ...]]) -> Graph | None:
        try:
            return from_onnx(self.model, shapes=shapes, target=self.target)
        except DataDependentError:
            return None


def as_array(value: Any) -> Any:
    """Return what a runner passes as arrays: tensors of protobuf, lists, and numbers."""
    if isinstance(value, onnx.TensorProto):
        return tensor(value)
    if value is None or isinstance(value, list | tuple):
        return value if value is None else [as_array(part) for part in value]
    return np.asarray(value)


class RefquantBackend(Backend):
    """What ``onnx.backend.base`` asks of a back end, on the CPU."""

    @classmethod
    def prepare(
        cls, model: Any, device: str = "CPU", target: str = "onnx", **kwargs: Any
    ) -> RefquantRep:
        """Return a model ready to run.

        Parameters
        ----------
        model : onnx.ModelProto
        device : str
            ``CPU``.
        target : str
            ``onnx`` or ``ort``, see :class:`refquant.Target`.
        """
        if not cls.supports_device(device):
            raise VerifyError(f"device {device!r}: refquant runs on the CPU")
        Target.parse(target)
        return RefquantRep(model, target)

    @classmethod
    def run_model(
        cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run a model once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Sequence[Any],
        device: str = "CPU",
        outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node on arrays; ``opset`` (the newest by default) says which version."""
        given = {
            name: as_array(x) for name, x in zip(filter(None, node.input), inputs, strict=True)
        }
        infos = [
            make_tensor_value_info(name, code_of(dtype_of(x)), x.shape)
            for name, x in given.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = make_graph([node], "node", infos, outputs)
        opset = make_opsetid("", kwargs.pop("opset", onnx.defs.onnx_opset_version()))
        opsets = (
            [opset] if node.domain in ("", "ai.onnx") else [opset, make_opsetid(node.domain, 1)]
        )
        model = make_model(graph, opset_imports=opsets)
        return cls.run_model(model, [*given.values()], device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether ``device`` is a CPU."""
        return bool(Device(device).type == DeviceType.CPU)


prepare = RefquantBackend.prepare
run_model = RefquantBackend.run_model
run_node = RefquantBackend.run_node
supports_device = RefquantBackend.supports_device
