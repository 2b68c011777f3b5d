"""Operators of every opset from 7 against onnxruntime, on operands the node tests do not have."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from refquant.onnx_backend import RefquantBackend

RNG = np.random.default_rng(7)


class Example(NamedTuple):
    """One node: operator, opset, operands (None is absent), attributes, number of results."""

    op: str
    opset: int
    operands: tuple[Any, ...]
    attributes: dict[str, Any]
    results: int = 1


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: Any, dtype: Any = np.int64) -> Any:
    return np.array(values, dtype)


X = floats(2, 3, 4)
IMAGE = floats(1, 2, 5, 7)
INTEGERS = RNG.integers(-9, 9, (3, 4)).astype(np.int32)
BYTES = INTEGERS.astype(np.uint8)
SPECIAL = np.array([[0, -0.0, 1.5, -2.5, np.inf, -np.inf, 1e-40, 88.0, -104.0]], np.float32)


def _old() -> list[Example]:
    """Return operators whose attributes became operands."""
    return [
        Example("Clip", 7, (X,), {"min": -0.5, "max": 0.5}),
        Example("Clip", 7, (X,), {"max": 0.25}),
        Example("Clip", 12, (INTEGERS.astype(np.int64), ints(-3).reshape(()), None), {}),
        Example("Clip", 13, (X, None, np.float32(0.3)), {}),
        Example("Slice", 9, (X,), {"starts": [1, -3], "ends": [9, -1], "axes": [0, 2]}),
        Example("Slice", 9, (X,), {"starts": [0, 1], "ends": [1, 2]}),
        Example("Slice", 10, (X, ints(1, 0), ints(3, 2**31 - 1), ints(1, 2)), {}),
        Example("Slice", 13, (X, ints(-1), ints(-5), ints(2), ints(-1)), {}),
        Example("Slice", 13, (X, ints(9), ints(-9), ints(-1), ints(-2)), {}),
        Example("Slice", 13, (X, ints(3), ints(0), ints(2), ints(-3)), {}),
        Example("Slice", 13, (X, ints(2), ints(2), ints(1), ints(1)), {}),
        Example("Slice", 13, (X, ints(1), ints(-1), ints(1), ints(-1)), {}),
        Example("Pad", 7, (IMAGE,), {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 2.5}),
        Example("Pad", 7, (IMAGE,), {"pads": [0, 0, 2, 2, 0, 0, 1, 1], "mode": "reflect"}),
        Example("Pad", 11, (IMAGE, ints(0, 0, -1, 2, 0, 0, -2, 1)), {"mode": "constant"}),
        Example("Pad", 13, (IMAGE, ints(0, 0, 1, 2, 0, 0, 3, 1)), {"mode": "edge"}),
        Example("Pad", 18, (X, ints(1, 2), np.float32(3.5), ints(-1)), {}),
        Example("Pad", 19, (X, ints(1, 2, 2, 3), None, ints(0, 2)), {"mode": "wrap"}),
        Example("Squeeze", 11, (X[:1, :, :1],), {"axes": [0, -1]}),
        Example("Squeeze", 13, (X[:1, :, :1],), {}),
        Example("Unsqueeze", 11, (X,), {"axes": [0, 4]}),
        Example("Unsqueeze", 13, (X, ints(-1, 1)), {}),
        Example("Split", 11, (X,), {"axis": 2, "split": [1, 3]}, 2),
        Example("Split", 7, (X,), {"axis": -1}, 2),
        Example("Split", 13, (X, ints(1, 0, 3)), {"axis": -1}, 3),
        Example("Split", 18, (X,), {"axis": 1, "num_outputs": 2}, 2),
        Example("TopK", 7, (X,), {"k": 2, "axis": 1}, 2),
        Example("TopK", 10, (X, ints(3)), {}, 2),
        Example("TopK", 11, (INTEGERS, ints(2)), {"axis": 0, "largest": 0}, 2),
        Example("Upsample", 7, (IMAGE,), {"scales": [1.0, 1.0, 2.0, 1.5]}),
        Example("Upsample", 9, (IMAGE, np.float32([1, 1, 2, 3])), {"mode": "linear"}),
        Example("ReduceSum", 11, (X,), {"axes": [0, -1], "keepdims": 0}),
        Example("ReduceSum", 13, (X, ints(1)), {"keepdims": 0}),
        Example("ReduceSum", 13, (X, np.zeros(0, np.int64)), {"noop_with_empty_axes": 1}),
        Example("ReduceMean", 13, (X,), {"axes": [1]}),
        Example("ReduceMean", 18, (INTEGERS, ints(0)), {}),
        Example("ReduceMax", 12, (X,), {}),
        Example("ReduceMin", 18, (INTEGERS, ints(-1)), {"keepdims": 0}),
        Example("ReduceProd", 13, (INTEGERS,), {"axes": [1]}),
        Example("ReduceL1", 13, (X,), {"axes": [2]}),
        Example("ReduceL2", 11, (X,), {"axes": [0, 1], "keepdims": 0}),
        Example("ReduceLogSum", 13, (np.abs(X),), {"axes": [1]}),
        Example("ReduceLogSumExp", 13, (X,), {"axes": [-1]}),
        Example("ReduceSumSquare", 13, (X,), {"axes": [1]}),
        Example("ArgMax", 11, (X,), {"axis": -1, "keepdims": 0}),
        Example("ArgMin", 12, (INTEGERS,), {"axis": 1, "select_last_index": 1}),
        Example("Scatter", 9, (X, ints([[1, 0]]), X[:1, :1, :2] * 2), {"axis": 2}),
        Example("DepthToSpace", 10, (floats(2, 8, 3, 3),), {"blocksize": 2}),
        Example("DepthToSpace", 11, (floats(2, 8, 3, 3),), {"blocksize": 2, "mode": "CRD"}),
        Example("SpaceToDepth", 7, (floats(2, 3, 4, 6),), {"blocksize": 2}),
        Example("Flatten", 7, (X,), {"axis": 0}),
        Example("Flatten", 13, (X,), {"axis": -1}),
        Example("Elu", 7, (SPECIAL,), {"alpha": 0.7}),
        Example("Selu", 7, (X,), {}),
        Example("Celu", 12, (X,), {"alpha": 2.0}),
        Example("LeakyRelu", 7, (X,), {"alpha": 0.2}),
        Example("ThresholdedRelu", 10, (X,), {"alpha": 0.5}),
        Example("HardSigmoid", 7, (X,), {"alpha": 0.3, "beta": 0.4}),
        Example("HardSwish", 14, (X * 4,), {}),
        Example("Softplus", 7, (X * 9,), {}),
        Example("Softsign", 7, (X,), {}),
        Example("PRelu", 7, (X, floats(3, 1)), {}),
        Example("PRelu", 9, (X, floats(4)), {}),
        Example("Mish", 18, (X,), {}),
        Example("Gelu", 20, (X,), {"approximate": "tanh"}),
        Example("Shrink", 9, (X,), {"lambd": 0.3, "bias": 0.1}),
        Example("MeanVarianceNormalization", 9, (IMAGE,), {"axes": [0, 2, 3]}),
        Example("LpNormalization", 7, (X,), {"axis": 1, "p": 1}),
        Example("GreaterOrEqual", 12, (X, X[:1]), {}),
        Example("Einsum", 12, (X, X), {"equation": "...ij,...kj->...ik"}),
        Example("Einsum", 12, (X[0], X[0]), {"equation": "ij,kj"}),
        Example("Einsum", 12, (INTEGERS, INTEGERS), {"equation": "ij,kj->ik"}),
        Example("EyeLike", 9, (INTEGERS,), {"k": -1, "dtype": 1}),
        Example("ConstantOfShape", 9, (ints(2, 0, 3),), {}),
        Example("Tile", 7, (X, ints(1, 2, 3)), {}),
        Example("Expand", 8, (X[:, :1], ints(3, 1)), {}),
        Example("NonZero", 9, (INTEGERS,), {}),
        Example("Unique", 11, (INTEGERS.astype(np.float32),), {"sorted": 0}, 4),
        Example("Unique", 11, (INTEGERS[[1, 0, 1]].astype(np.int64),), {"axis": 0}, 4),
        Example("Range", 11, (np.float32(1), np.float32(-2.1), np.float32(-0.3)), {}),
        Example("OneHot", 9, (ints(1, -1, 9), ints(3), np.float32([2, 5])), {"axis": 0}),
        Example("CumSum", 11, (X, ints(-2).reshape(())), {"exclusive": 1, "reverse": 1}),
        Example("GatherND", 12, (X, ints([0, -1], [1, 2])), {}),
        Example("GatherND", 12, (X, ints([[1]], [[0]])), {"batch_dims": 1}),
        Example("GatherElements", 11, (X, ints([[0, -1]])), {"axis": 2}),
        Example("ReverseSequence", 10, (X, ints(1, 3)), {"batch_axis": 0, "time_axis": 1}),
        Example("Trilu", 14, (X, ints(-1).reshape(())), {"upper": 0}),
        Example("Trilu", 14, (X, ints(9).reshape(())), {}),
        Example("Compress", 9, (X, np.array([True, False, True])), {"axis": 1}),
        Example("Det", 11, (floats(2, 4, 4),), {}),
        Example("IsInf", 10, (SPECIAL,), {"detect_positive": 0}),
        Example("Mod", 10, (INTEGERS, INTEGERS[:1] * 0 + 4), {}),
        Example("Mod", 13, (X, X[::-1] + 3), {"fmod": 1}),
        Example(
            "BitShift",
            11,
            (INTEGERS.astype(np.uint8), ints(1, dtype=np.uint8)),
            {"direction": "LEFT"},
        ),
        Example("Div", 14, (INTEGERS, np.full(1, -4, np.int32)), {}),
        Example("Div", 14, (np.int8([-128, 127, -128]), np.int8([2, -2, 3])), {}),
        Example("Pow", 7, (np.abs(X), X[0]), {}),
        Example("Pow", 12, (INTEGERS, np.float32(2)), {}),
        Example("Sum", 8, (X, X[:1], X[0, 0]), {}),
        Example("Mean", 8, (X, X[:1], X[0, 0]), {}),
        Example("Max", 12, (INTEGERS, INTEGERS[:1]), {}),
        Example("Where", 9, (X > 0, X, X[:1]), {}),
        Example("Cast", 9, (SPECIAL[:, :4],), {"to": TensorProto.INT32}),
        Example("Cast", 13, (INTEGERS,), {"to": TensorProto.BOOL}),
        Example("Cast", 19, (SPECIAL,), {"to": TensorProto.FLOAT8E4M3FN}),
    ]


def _elementary() -> list[Example]:
    """Return functions of one element with awkward values."""
    names = (
        *("Abs", "Neg", "Ceil", "Floor", "Round", "Sign", "Sqrt", "Reciprocal", "Exp", "Erf"),
        *("Sigmoid", "Tanh", "Relu", "IsNaN", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh"),
        *("Asinh", "Softsign"),
    )
    skipped = {"Sin", "Cos", "Tan", "IsNaN"}  # of infinity: NaN, whose sign is not defined
    return [
        Example(name, 13, (SPECIAL[:, :4] if name in skipped else SPECIAL,), {}) for name in names
    ] + [
        Example("Acos", 7, (np.float32([-1, -0.5, 0, 1]),), {}),
        Example("Asin", 7, (np.float32([-1, -0.5, 0, 1]),), {}),
        Example("Acosh", 9, (np.float32([1, 1.5, 9]),), {}),
        Example("Atanh", 9, (np.float32([-1, -0.5, 0, 1]),), {}),
        Example("Log", 13, (np.float32([0, 1e-40, 1, np.inf]),), {}),
    ]


HERTZ = np.float32(0), np.float32(4000)
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def _resizes() -> list[Example]:
    """Return sizes that go up, down and by fractions, with every transformation."""
    scales = np.float32([1, 1, 0.6, 2.3])
    sizes = ints(1, 2, 9, 3)
    made = [
        Example("Resize", 10, (IMAGE, np.float32([1, 1, 2, 1.7])), {"mode": "nearest"}),
        Example("Resize", 10, (IMAGE, np.float32([1, 1, 2, 1.7])), {"mode": "linear"}),
        Example("Resize", 10, (IMAGE, np.float32([1, 1, 0.6, 0.3])), {"mode": "nearest"}),
        Example("Resize", 10, (IMAGE, np.float32([1, 1, 0.6, 1.7])), {"mode": "nearest"}),
    ]
    for opset in (11, 13, 18, 19):
        none = np.zeros(0, np.float32) if opset < 13 else None
        for transformation in COORDINATES:
            for mode in ("linear", "cubic", "nearest"):
                options = {"mode": mode, "coordinate_transformation_mode": transformation}
                made.append(Example("Resize", opset, (IMAGE, none, scales), options))
                made.append(Example("Resize", opset, (IMAGE, none, none, sizes), options))
    for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        options = {"mode": "nearest", "nearest_mode": nearest}
        made.append(Example("Resize", 13, (IMAGE, None, None, sizes), options))
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.5}
    roi = np.float32([0, 0, 0.2, -0.3, 1, 1, 0.7, 1.2])
    made.append(Example("Resize", 13, (IMAGE, roi, None, sizes), {"mode": "linear", **crop}))
    outside = {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}
    made.append(Example("Resize", 13, (IMAGE, None, scales), outside))
    made += [
        Example(
            "Resize",
            18,
            (IMAGE, None, None, ints(3, 4)),
            {"mode": mode, "antialias": 1, "axes": [2, 3]},
        )
        for mode in ("linear", "cubic")
    ]
    made += [
        Example(
            *("Resize", 18, (IMAGE, None, None, ints(8, 8))),
            {"keep_aspect_ratio_policy": policy, "axes": [2, 3]},
        )
        for policy in ("not_larger", "not_smaller")
    ]
    return made


def _grids() -> list[Example]:
    """Return places inside, outside and on the borders."""
    grid = (RNG.uniform(-2.2, 2.2, (1, 3, 4, 2))).astype(np.float32)
    volume, places = (
        floats(1, 2, 3, 4, 5),
        RNG.uniform(-1.6, 1.6, (1, 2, 3, 2, 3)).astype(np.float32),
    )
    made = []
    for align in (0, 1):
        for padding in ("zeros", "border", "reflection"):
            options = {"padding_mode": padding, "align_corners": align}
            made += [
                Example("GridSample", 16, (IMAGE, grid), {"mode": mode, **options})
                for mode in ("bilinear", "nearest", "bicubic")
            ]
            made += [
                Example("GridSample", 20, (volume, places), {"mode": mode, **options})
                for mode in ("linear", "nearest")
            ]
    return made


def _signals() -> list[Example]:
    signal, spectrum = floats(2, 9, 1), floats(2, 9, 2)
    return [
        Example("DFT", 17, (signal,), {"axis": 1, "onesided": 1}),
        Example("DFT", 17, (spectrum,), {"axis": 1, "inverse": 1}),
        Example("DFT", 17, (signal, ints(12).reshape(())), {"axis": 1}),
        Example("DFT", 20, (spectrum, ints(5).reshape(()), ints(1).reshape(())), {}),
        Example("STFT", 17, (signal, ints(2).reshape(()), floats(4)), {}),
        Example(
            "MelWeightMatrix",
            17,
            tuple(map(np.int64, (4, 16, 8000))) + tuple(map(np.float32, (0, 4000))),
            {},
        ),
        Example("Col2Im", 18, (floats(2, 18, 20), ints(6, 7), ints(3, 3)), {}),
        Example(
            "Col2Im",
            18,
            (floats(1, 8, 16), ints(6, 7), ints(2, 2)),
            {"pads": [1, 0, 1, 1], "strides": [2, 2]},
        ),
    ]


def _positions() -> list[Example]:
    """Return positions that occur twice, and boxes that overlap, with equal scores."""
    at = RNG.integers(-3, 3, (2, 3, 4))
    rows = RNG.integers(0, 2, (5, 2))
    made = [
        Example("ScatterElements", 18, (X, at, floats(2, 3, 4)), {"axis": 1, "reduction": how})
        for how in ("add", "mul", "max", "min")
    ]
    made += [
        Example("ScatterND", 18, (X, rows, floats(5, 4)), {"reduction": how})
        for how in ("add", "mul", "max", "min")
    ]
    made += [Example("ScatterND", 11, (X, ints([1], [0]), floats(2, 3, 4)), {})]
    corners = RNG.integers(0, 9, (2, 12, 4)).astype(np.float32)
    scores = (RNG.integers(0, 6, (2, 3, 12)) / 8).astype(np.float32)
    for centre in (0, 1):
        for overlap in (0.0, 0.3, 0.9):
            limits = ints(4), np.float32([overlap]), np.float32([0.2])
            operands = corners, scores, *limits
            made.append(Example("NonMaxSuppression", 11, operands, {"center_point_box": centre}))
    made.append(Example("NonMaxSuppression", 10, (corners, scores, ints(9)), {}))
    made.append(Example("NonMaxSuppression", 10, (corners, scores), {}))
    return made


EXAMPLES = [*_old(), *_elementary(), *_resizes(), *_grids(), *_signals(), *_positions()]


def model(example: Example) -> Any:
    """Return a model of one node."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(example.operands)]
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.shape(x)
        )
        for name, x in zip(names, example.operands, strict=True)
        if name
    ]
    outputs = [f"y{i}" for i in range(example.results)]
    node = helper.make_node(example.op, names, outputs, **example.attributes)
    infos = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "one", inputs, infos)
    opsets = [helper.make_opsetid("", example.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def expected(example: Example) -> list[Any]:
    """Return what onnxruntime computes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        onnx.shape_inference.infer_shapes(model(example)).SerializeToString(), options
    )
    given = {f"x{i}": np.asarray(x) for i, x in enumerate(example.operands) if x is not None}
    found: list[Any] = session.run(None, given)
    return found


def name_of(example: Example) -> str:
    words = (str(value) for value in example.attributes.values())
    return "-".join((example.op, str(example.opset), *words)).replace(" ", "")


@pytest.mark.parametrize("example", [pytest.param(e, id=name_of(e)) for e in EXAMPLES])
def test_an_operator_gives_what_onnxruntime_computes(example: Example) -> None:
    given = [np.asarray(x) for x in example.operands if x is not None]
    results = RefquantBackend.run_model(model(example), given, target="ort")
    for got, want in zip(results, expected(example), strict=True):
        if got.dtype.name.startswith("float8"):
            got = got.view(np.uint8)  # as onnxruntime returns it
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if want.dtype.kind == "f":
            # Functions and sums of floats have last bits of their own; a DFT adds many terms.
            np.testing.assert_allclose(
                got, want, rtol=2e-5, atol=1e-5 if example.op == "DFT" else 2e-6
            )
        else:
            np.testing.assert_array_equal(got, want)
