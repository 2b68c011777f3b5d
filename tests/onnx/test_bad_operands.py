"""Malformed or huge operands: one clear line, and no memory taken."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnx
import pytest

from refquant.importers.onnx import from_onnx
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError

HUGE = 2**40
# Bodies over x of shape [2, 3, 4] and, in brackets, what the message says.
MALFORMED = {
    "y = Transpose <perm = [0, 0, 1]> (x)": "not a permutation",
    "y = Flatten <axis = 4> (x)": "axis 4 is outside a tensor of rank 3",
    "a = Constant <value_ints = [3]> () y = Squeeze (x, a)": "axis 3 is outside",
    "a = Constant <value_ints = [0]> () y = Squeeze (x, a)": "dimension 0 of .* is not 1",
    "a = Constant <value_ints = [1, 1]> () y = Unsqueeze (x, a)": "name a dimension twice",
    "a = Constant <value_ints = [-5]> () y = Unsqueeze (x, a)": "axis -5 is outside",
    "s = Constant <value_ints = [5, 5]> () y = Reshape (x, s)": "24 elements",
    "s = Constant <value_ints = [-1, -1]> () y = Reshape (x, s)": "only one entry may be -1",
    "s = Constant <value_ints = [-2, 12]> () y = Reshape (x, s)": "negative length",
    "s = Constant <value_ints = [5, 1]> () y = Expand (x, s)": "do not broadcast",
    "s = Constant <value_ints = [-1]> () y = Expand (x, s)": "negative",
    "s = Constant <value_ints = [-1]> () y = ConstantOfShape (s)": "negative",
    "r = Constant <value_ints = [1, -1, 1]> () y = Tile (x, r)": "negative",
    "r = Constant <value_ints = [1, 1]> () y = Tile (x, r)": "2 repeats",
    "y = Concat <axis = 3> (x, x)": "axis 3 is outside a tensor of rank 3",
    "z = Transpose (x) y = Concat <axis = 0> (x, z)": "differ outside dim 0",
    "s = Constant <value_ints = [1, 1]> () y, z = Split <axis = 2> (x, s)": "add up",
    "s = Constant <value_ints = [-1, 5]> () y, z = Split <axis = 2> (x, s)": "negative",
    "y, z = Split <axis = 1> (x)": "has no 2 parts",
    "s = Constant <value_ints = [0]> () t = Constant <value_ints = [0]> () "
    "y = Slice (x, s, s, s, t)": "a step is 0",
    "s = Constant <value_ints = [0]> () a = Constant <value_ints = [7]> () "
    "y = Slice (x, s, s, a)": "axis 7 is outside",
    "p = Constant <value_ints = [1, 2]> () y = Pad (x, p)": "2 pads for 3 dimensions",
    "p = Constant <value_ints = [0, 0, -3, 0, 0, -3]> () y = Pad (x, p)": "cuts off more than",
    'p = Constant <value_ints = [0, 0, 1, 0, 0, 0]> () y = Pad <mode = "mirror"> (x, p)': "mode",
    "i = Constant <value_int = 9> () y = Gather (x, i)": "index must be in",
    "i = Constant <value_ints = [9]> () k = Constant <value_ints = [1, 2]> () "
    "y = Gather (k, i)": "index 9 is out of range",
    "i = Constant <value_int = 0> () y = Gather <axis = 3> (x, i)": "axis 3 is outside",
    "y = ReduceMax <axes = [3]> (x)": "axis 3 is outside",
    "y = ReduceMax <axes = [1, -2]> (x)": "name a dimension twice",
    "y = ArgMax <axis = -4> (x)": "axis -4 is outside",
    "k = Constant <value_ints = [5]> () y, z = TopK (x, k)": "k must be in",
    "k = Constant <value_ints = [-1]> () y, z = TopK (x, k)": "k must be in",
    "a = Constant <value_int = 3> () y = CumSum (x, a)": "axis 3 is outside",
    "y = DepthToSpace <blocksize = 2> (x)": "expected rank 4",
    "z = Flatten (x) y = Concat <axis = 0> (x, z)": "operands of rank 3 and 2",
    "s = Constant <value_ints = [2, 3, 4, 0]> () y = Reshape (x, s)": "0 at 3 stands for",
    "k = Constant <value_ints = [1, 2]> () y, z = TopK (x, k)": "one number",
    "y = Det (x)": "square matrices",
    'y = Einsum <equation = "ij->i"> (x)': "rank of 'ij' must be 2",
    'y = Einsum <equation = "ijk,k->i"> (x)': "1 operands",
    'z = Cast <to = 7> (x) y = BitShift <direction = "UP"> (z, z)': "expected",
    "y = Cast <to = 8> (x)": "element type string is not supported",
    "y = Cast <to = 99> (x)": "element type 99 is not supported",
    "s = Constant <value_floats = [1.0, 1.0, 0.0]> () y = Resize (x, , s)": "must be positive",
    "s = Constant <value_floats = [1.0, 2.0]> () y = Resize (x, , s)": "expected 3 scales",
    "y = LpNormalization <p = 3> (x)": "p must be 1 or 2",
    "y = Mod (x, x)": "fmod",
}
MEMORY = {
    f"s = Constant <value_ints = [{HUGE}]> () y = ConstantOfShape (s)": "more than 2 GiB",
    f"r = Constant <value_ints = [1, 1, {HUGE}]> () y = Tile (x, r)": "more than 2 GiB",
    f"s = Constant <value_ints = [{HUGE}, 1, 1, 1]> () y = Expand (x, s)": "more than 2 GiB",
    f"p = Constant <value_ints = [0, 0, {HUGE}, 0, 0, 0]> () y = Pad (x, p)": "more than 2 GiB",
    f"p = Constant <value_ints = [0, 0, {HUGE}, 0, 0, 0]> () "
    'y = Pad <mode = "edge"> (x, p)': "more than 2 GiB",
    f"a = Constant <value_int = 0> () z = Constant <value_int = {HUGE}> () "
    "d = Constant <value_int = 1> () y = Range (a, z, d)": "more than 2 GiB",
    f"i = Constant <value_ints = [1]> () d = Constant <value_int = {HUGE}> () "
    "v = Constant <value_floats = [0.0, 1.0]> () y = OneHot (i, d, v)": "more than 2 GiB",
    "s = Constant <value_floats = [1.0, 1.0, 1e12]> () y = Resize (x, , s)": "more than 2 GiB",
    f"s = Constant <value_ints = [2, 3, {HUGE}]> () y = Resize (x, , , s)": "more than 2 GiB",
    f"b = Constant <value_int = {HUGE}> () l = Constant <value_int = 4> () "
    "r = Constant <value_int = 9> () e = Constant <value_float = 0.0> () "
    "f = Constant <value_float = 4.0> () y = MelWeightMatrix (b, l, r, e, f)": "more than 2 GiB",
    f"l = Constant <value_int = {HUGE}> () y = DFT <axis = 1> (c, l)": "more than 2 GiB",
}


def imported(body: str, opset: int) -> Any:
    text = f"""
    <ir_version: 10, opset_import: ["" : {opset}]>
    test (float[2, 3, 4] x, float[2, 8, 1] c) => (float[M] y) {{ {body} }}
    """
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.Clear()
    return from_onnx(model)


@pytest.mark.parametrize("body", MALFORMED)
def test_a_malformed_operand_is_named_in_one_line(body: str) -> None:
    with pytest.raises(RefquantError, match=MALFORMED[body]) as caught:
        imported(body, 17)
    assert isinstance(caught.value, VerifyError | UnsupportedError)
    assert "\n" not in str(caught.value)
    assert "node y" in str(caught.value)


@pytest.mark.parametrize("body", MEMORY)
def test_a_huge_result_is_refused_before_memory_is_taken(body: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RefquantError, match=MEMORY[body]) as caught:
            imported(body, 17)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert most < 2**26


def test_an_index_that_only_a_run_gives_is_checked_there() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    test (float[2, 3] x, int64[1] i) => (float[M] y) { y = Gather (x, i) }
    """
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.Clear()
    graph = from_onnx(model)
    x = np.ones((2, 3), np.float32)
    with pytest.raises(VerifyError, match="index 2 is out of range"):
        graph(x, np.array([2]))
    assert graph(x, np.array([-1])).shape == (1, 3)
