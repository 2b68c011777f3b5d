"""Vectors recorded from torch, so that the tests mean something where torch is absent.

``python tests/golden.py`` records them anew (it needs torch); ``test_golden.py`` reads them.
Inputs are stored too, so that nothing depends on a random generator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ir.types import DTYPES, DType, QScheme

PATH = Path(__file__).parent / "golden" / "observers.npz"
OPS = "aten", "quantized_decomposed"


class Vector(NamedTuple):
    """One call: an op (``namespace::name``) or an observer's class name, and what torch gave.

    For an observer ``operands`` are its batches, and ``expected`` scale, zero point and the
    buffers in the order of their names.
    """

    name: str
    operands: tuple[Any, ...]
    attributes: dict[str, Any]
    expected: tuple[Any, ...] = ()


def ties(rng: np.random.Generator, scale: Any, size: int) -> Any:
    """Draw float32 whose quotient by the scale is within 3 ulp of a tie, and awkward values."""
    near = (rng.integers(-200, 200, size) + 0.5) * np.float32(scale)
    x = near.astype(np.float32).view(np.int32) + rng.integers(-3, 4, size, np.int32)
    awkward = [0.0, -0.0, 1e-45, -1e-39, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38]
    return np.concatenate([x.view(np.float32), np.array(awkward, np.float32)])


def calls() -> Iterator[Vector]:
    """Yield what is recorded, without results."""
    rng = np.random.default_rng(7)
    dtypes = {name: DTYPES[name] for name in ("quint8", "qint8", "qint32")}
    for name, dtype in dtypes.items():
        for scale, zero_point in ((0.1, 3), (0.0123, 0), (1e-7, 77)):
            x = ties(rng, scale, 120)
            attributes = {"scale": scale, "zero_point": zero_point, "dtype": dtype}
            yield Vector("aten::quantize_per_tensor", (x,), attributes)
            q = rng.integers(0, 100, 60).astype(dtype.storage)
            yield Vector("aten::dequantize", (QTensor(q, scale, zero_point, None, dtype),), {})
        scales = np.exp(rng.uniform(-8, 2, 4))
        rows = np.stack([ties(rng, scale, 60) for scale in scales])
        operands = (rows, scales, rng.integers(0, 100, 4))
        yield Vector("aten::quantize_per_channel", operands, {"axis": 0, "dtype": dtype})
        del name
    for low, high in ((0, 255), (-128, 127), (-8, 7)):
        x = ties(rng, 0.05, 120)
        limits = {"quant_min": low, "quant_max": high}
        attributes = {"scale": 0.05, "zero_point": 3} | limits
        yield Vector("aten::fake_quantize_per_tensor_affine_cachemask", (x,), attributes)
        scales = np.exp(rng.uniform(-8, 2, 4)).astype(np.float32)
        rows = np.stack([ties(rng, scale, 60) for scale in scales])
        for zero_points in (np.arange(4, dtype=np.int32), np.linspace(-3, 3, 4, dtype=np.float32)):
            operands = (rows, scales, zero_points)
            name = "aten::fake_quantize_per_channel_affine_cachemask"
            yield Vector(name, operands, {"axis": 0} | limits)
        finite = np.nan_to_num(x[:100], posinf=9, neginf=-9)
        grad = rng.standard_normal(100).astype(np.float32)
        operands = (grad, finite, np.array([0.05], np.float32), np.array([2.3], np.float32))
        name = "aten::_fake_quantize_learnable_per_tensor_affine_backward"
        yield Vector(name, operands, limits | {"grad_factor": 0.25})
    for low, high in ((-7.5, 2.0), (0.0, 1e-9), (-3.0, -1.0), (1.0, 90.0), (0.0, 0.0)):
        x = np.array([low, high], np.float32)
        for dtype in (DTYPES["quint8"], DTYPES["qint8"]):
            attributes = {"dtype": dtype, "reduce_range": False}
            yield Vector("aten::quantize_per_tensor_dynamic", (x,), attributes)
    for scheme in QScheme:
        for dtype in ("quint8", "qint8", "int16"):
            prefix = "PerChannel" if scheme.is_per_channel else ""
            batches = tuple(
                (rng.standard_normal((4, 9)) * 10.0 ** rng.uniform(-3, 3)).astype(np.float32)
                for _ in range(3)
            )
            settings = {"dtype": DTYPES[dtype], "qscheme": scheme}
            yield Vector(f"{prefix}MinMaxObserver", batches, settings)
            moving = settings | {"averaging_constant": 0.3}
            yield Vector(f"MovingAverage{prefix}MinMaxObserver", batches, moving)
    for _ in range(6):
        batches = tuple(
            (rng.standard_t(3, int(rng.integers(1, 800))) * (1 + k)).astype(np.float32)
            for k in range(3)
        )
        yield Vector("HistogramObserver", batches, {"bins": 128})


def save(vectors: list[Vector], facts: dict[str, Any]) -> None:
    """Write the vectors and the facts of the machine they come from."""
    arrays: dict[str, Any] = {}

    def put(value: Any) -> Any:
        if isinstance(value, QTensor):
            parts = [value.int_repr, np.asarray(value.scale), np.asarray(value.zero_point)]
            return {"q": [put(part) for part in parts], "axis": value.axis, "of": put(value.dtype)}
        if isinstance(value, DType):
            return {"dtype": value.name}
        if isinstance(value, QScheme):
            return {"qscheme": str(value)}
        if isinstance(value, np.ndarray):
            arrays[f"a{len(arrays)}"] = value
            return {"array": f"a{len(arrays) - 1}"}
        return value

    index = [
        {
            "name": v.name,
            "operands": [put(x) for x in v.operands],
            "attributes": {key: put(x) for key, x in v.attributes.items()},
            "expected": [put(x) for x in v.expected],
        }
        for v in vectors
    ]
    PATH.parent.mkdir(exist_ok=True)
    text = json.dumps({"facts": facts, "vectors": index})
    np.savez_compressed(PATH, index=np.array(text), **arrays)


def load() -> tuple[list[Vector], dict[str, Any]]:
    """Read the vectors and the facts of the machine they come from."""
    with np.load(PATH) as file:
        arrays = dict(file)

    def get(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return arrays[value["array"]]
        if "dtype" in value:
            return DTYPES[value["dtype"]]
        if "qscheme" in value:
            return QScheme(value["qscheme"])
        q, scale, zero_point = map(get, value["q"])
        if value["axis"] is None:
            scale, zero_point = float(scale), int(zero_point)
        return QTensor(q, scale, zero_point, value["axis"], get(value["of"]))

    content = json.loads(str(arrays["index"]))
    vectors = [
        Vector(
            v["name"],
            tuple(map(get, v["operands"])),
            {key: get(x) for key, x in v["attributes"].items()},
            tuple(map(get, v["expected"])),
        )
        for v in content["vectors"]
    ]
    return vectors, content["facts"]


def record() -> None:
    """Run torch on every call and write the file."""
    import torch
    from oracle import call_torch, to_torch
    from torch.ao.quantization import observer as torch_observer

    torch.set_num_threads(1)
    vectors = []
    for vector in calls():
        name, operands, attributes, _ = vector
        if "::" in name:
            result = call_torch(name, operands, attributes)
            expected = result if isinstance(result, tuple) else (result,)
        else:
            settings = {key: to_torch(value) for key, value in attributes.items()}
            observer = getattr(torch_observer, name)(**settings)
            for batch in operands:
                observer(torch.from_numpy(batch))
            state = observer.state_dict()
            parts = [*observer.calculate_qparams(), *(state[key] for key in sorted(state))]
            expected = tuple(part.numpy() for part in parts)
        vectors.append(vector._replace(expected=expected))
    capability = torch.backends.cpu.get_cpu_capability()
    save(vectors, {"torch": torch.__version__, "capability": capability, "threads": 1})
    print(f"{len(vectors)} vectors, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    record()
