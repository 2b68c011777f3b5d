"""Types and quantized tensors refuse what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refquant.ir import Dim, QParams, QTensor, Target, TensorType, VerifyError
from refquant.ir.types import DTYPES, Size, float32, qint8, quint8

BYTES = np.zeros(2, np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BYTES, 1.0, 256), r"zero_point must be in \[0, 255\], got 256"),
        ((BYTES, 1.0, -1), r"zero_point must be in \[0, 255\], got -1"),
        ((BYTES, 1.0, 0, None, qint8), "qint8 is stored as int8, got uint8"),
        ((BYTES, 1.0, 0, None, float32), "float32 is not a quantized dtype"),
        ((BYTES, np.ones(2), np.array([0, 300]), 0), r"zero_point must be in .*got 300"),
    ],
)
def test_a_quantized_tensor_that_does_not_fit(arguments: Any, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        QTensor(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1.0,), 0, 0), "per channel needs a tuple of scales"),
        (((1.0,), (0, 0), 0), "1 scales but 2 zero points"),
        ((1.0, 0, None, 4), "group_size must be >= 1 and needs an axis"),
    ],
)
def test_quantization_parameters_that_do_not_fit(arguments: Any, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        QParams(*arguments)


def test_a_type_whose_parameters_do_not_fit() -> None:
    with pytest.raises(VerifyError, match="float32 cannot have quantization parameters"):
        TensorType(DTYPES["float32"], (2,), QParams(1.0, 0))
    with pytest.raises(VerifyError, match=r"1 scales for axis 0 of \[2\]"):
        TensorType(quint8, (2,), QParams((1.0,), (0,), 0))


def test_arithmetic_of_a_symbolic_length_is_exact_or_refused() -> None:
    n: Any = Dim("N")
    exact: list[tuple[Size, Size]] = [(n + n, 2 * n), (6 * n // 2, 3 * n), (6 * n // (2 * n), 3)]
    for got, expected in exact:
        assert got == expected
    for refused in (lambda: n + 1, lambda: 3 * n // 2, lambda: n * n, lambda: n - 1):
        with pytest.raises(VerifyError, match="is not a multiple of N"):
            refused()


def test_onnxruntime_is_known_on_one_machine() -> None:
    assert str(Target("ort")) == "ort/avx512_vnni/threads=1"
    for text in ("ort/avx2", "ort/avx512_vnni/threads=2"):
        with pytest.raises(VerifyError, match="ort is known as ort/avx512_vnni/threads=1, got"):
            Target.parse(text)
