"""All 2**32 float32 inputs of ``quantize_per_tensor`` against torch; ``nox -s exhaustive``.

Not collected with the other tests: it takes minutes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ledger import Ledger

from refquant import qint8, qint32, quint8
from refquant.ir.types import DType
from refquant.kernels.quantize_per_tensor import kernel

CHUNK = 1 << 20  # its arrays stay in the cache
PAIRS = [
    (0.1, 0, quint8),
    (0.0078431377, 128, quint8),
    (1 / 3, 255, quint8),
    (2.0**-20, 7, quint8),
    (0.02, -128, qint8),
    (1e-38, 0, qint8),
    (3.7e30, 5, qint8),
    (0.001, -12345, qint32),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("scale", "zero_point", "dtype"), PAIRS)
def test_every_float32(scale: float, zero_point: int, dtype: DType, ledger: Ledger) -> None:
    torch.set_num_threads(1)
    offsets = np.arange(CHUNK, dtype=np.uint32)
    for begin in range(0, 1 << 32, CHUNK):
        x = (offsets + np.uint32(begin)).view(np.float32)
        expected = torch.quantize_per_tensor(
            torch.from_numpy(x), scale, zero_point, getattr(torch, dtype.name)
        )
        actual = kernel(x, scale, zero_point, dtype)
        subject = f"quantize_per_tensor {dtype}, every float32"
        ledger.equal(subject, actual.int_repr, expected.int_repr().numpy())
