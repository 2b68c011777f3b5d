"""Shape arithmetic of models as exporters write it, with a batch of any length."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from refquant.importers.onnx import from_onnx
from refquant.ir.errors import RefquantError
from refquant.ir.graph import Graph
from refquant.onnx_backend import RefquantBackend

# Bodies over x of shape [N, 3, 4]; the result is y.
BODIES = {
    "flatten": """
        s = Shape (x)
        batch = Slice (s, zero, one)
        rest = Slice (s, one, three)
        size = ReduceProd <axes = [0], keepdims = 1> (rest)
        shape = Concat <axis = 0> (batch, size)
        y = Reshape (x, shape)
    """,
    "flatten to -1": """
        s = Shape (x)
        at = Constant <value_int = 0> ()
        batch = Gather (s, at)
        row = Unsqueeze (batch, zero)
        minus = Constant <value_ints = [-1]> ()
        shape = Concat <axis = 0> (row, minus)
        y = Reshape (x, shape)
    """,
    "expand as torch writes it": """
        s = Shape (x)
        batch = Slice (s, zero, one)
        minus = Constant <value_ints = [-1]> ()
        wanted = Concat <axis = 0> (batch, three, minus)
        length = Shape (wanted)
        ones = ConstantOfShape <value = int64[1] {1}> (length)
        kept = Mul (ones, minus)
        is_kept = Equal (wanted, kept)
        sizes = Where (is_kept, ones, wanted)
        row = Slice (x, zero, one, two)
        y = Expand (row, sizes)
    """,
    "a constant for each of the batch": """
        s = Shape (x)
        batch = Slice (s, zero, one)
        rest = Constant <value_ints = [1, 4]> ()
        sizes = Concat <axis = 0> (batch, rest)
        token = Constant <value = float[1, 1, 4] {1, 2, 3, 4}> ()
        tokens = Expand (token, sizes)
        y = Concat <axis = 1> (tokens, x)
    """,
    "zeros of the batch": """
        s = Shape (x)
        zeros = ConstantOfShape (s)
        y = Add (x, zeros)
    """,
    "heads": """
        s = Shape (x)
        at = Constant <value_int = 0> ()
        batch = Gather (s, at)
        two0 = Constant <value_int = 2> ()
        double = Mul (batch, two0)
        half = Div (double, two0)
        row = Unsqueeze (half, zero)
        last = Constant <value_ints = [2, 6]> ()
        shape = Concat <axis = 0> (row, last)
        y = Reshape (x, shape)
    """,
    "resize": """
        s = Shape (x)
        kept = Slice (s, zero, two)
        wide = Constant <value_ints = [7]> ()
        sizes = Concat <axis = 0> (kept, wide)
        none = Constant <value = float[0] {}> ()
        y = Resize <mode = "linear"> (x, none, none, sizes)
    """,
    "larger": """
        s = Shape (x)
        least = Max (s, zero)
        shape = Mod (least, least)
        none = Add (shape, least)
        y = Reshape (x, none)
    """,
    "split, pad and transpose": """
        a, b = Split <axis = 2> (x)
        pads = Constant <value_ints = [0, 1, 0, 0, 0, 2]> ()
        c = Pad (a, pads)
        turned = Transpose <perm = [0, 2, 1]> (c)
        y = Tile (turned, tiles)
    """,
}
HEAD = """
<ir_version: 8, opset_import: ["" : 13]>
test (float[N, 3, 4] x) => (float[M] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3},
 int64[3] tiles = {1, 2, 1}>
"""


def parsed(body: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f"{HEAD} {{ {body} }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def imported(body: str) -> Graph:
    return from_onnx(parsed(body))


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_graph_of_any_batch_gives_what_one_of_that_batch_gives(name: str, batch: int) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, 3, 4)).astype(np.float32)
    graph = imported(BODIES[name])
    session = ort.InferenceSession(parsed(BODIES[name]).SerializeToString())
    (expected,) = session.run(None, {"x": x})
    # Engine onnx sums and rounds functions as torch does; the shapes are the matter here.
    np.testing.assert_allclose(graph(x), expected, rtol=1e-6, atol=1e-6)
    known = from_onnx(parsed(BODIES[name]), shapes={"x": (batch, 3, 4)})
    np.testing.assert_array_equal(known(x), graph(x))


REFUSED = {
    "s = Shape (x)\n f = Cast <to = 1> (s)\n y = Identity (f)": "a length as a float depends",
    "s = Shape (x)\n e = Equal (s, two)\n y = Identity (e)": "N == 2 depends on the batch",
    "s = Shape (x)\n m = Max (s, two)\n y = Identity (m)": "the larger of N and 2 depends",
    "s = Shape (x)\n y = Identity (s)": "output y depends on the batch",
    "z = NonZero (x)\n y = Identity (z)": "must be a constant",
    "y = Slice (x, one, three)": "a slice from 1 to 3 of dimension 0",
}


@pytest.mark.parametrize("body", REFUSED)
def test_what_depends_on_the_batch_is_refused_with_a_reason(body: str) -> None:
    with pytest.raises(RefquantError, match=REFUSED[body]):
        imported(body)


def test_the_back_end_binds_what_depends_on_values() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    x[1, 2, 3] = 1
    (found,) = RefquantBackend.run_model(parsed("y = NonZero (x)"), [x])
    np.testing.assert_array_equal(found, [[1], [2], [3]])
