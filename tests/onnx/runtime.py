"""onnxruntime as an oracle: one thread, optimisation off unless asked for."""

from __future__ import annotations

from typing import Any

import onnxruntime


def session(model: Any, *, optimised: bool = False) -> Any:
    """Return a session for a path or a model."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    given = model.SerializeToString() if hasattr(model, "SerializeToString") else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def run(model: Any, *inputs: Any, optimised: bool = False) -> Any:
    """Return the outputs of a model, fed in order or by a dict of names."""
    opened = session(model, optimised=optimised)
    if len(inputs) == 1 and isinstance(inputs[0], dict):
        return opened.run(None, inputs[0])
    names = [x.name for x in opened.get_inputs()]
    return opened.run(None, dict(zip(names, inputs, strict=True)))
