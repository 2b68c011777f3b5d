"""Real rows times a constant matrix of bytes: quantized by their own range, summed exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.convolve import buffer
from refquant.kernels.jit import jit
from refquant.kernels.job import Job, dense
from refquant.kernels.onnx import integer_product as product
from refquant.kernels.onnx.dynamic_quantize_linear import quantize
from refquant.kernels.onnx.kept import KEPT, KeptArray, form
from refquant.kernels.packing import Lanes, PackedWeight
from refquant.kernels.registers import SLACK
from refquant.kernels.requantize import UNREAD
from refquant.kernels.walk import matrix_walk

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_LINE = 64


@dataclass(frozen=True)
class DynamicWeight:
    """A constant matrix, ready for the tile, and the scale of each column."""

    packed: PackedWeight
    lanes: Lanes
    scales: F32
    jobs: dict[int, Job] = field(default_factory=dict)  # by the number of rows

    @classmethod
    def of(cls, matrix: KeptArray, scale: Array, zero_point: Array) -> DynamicWeight:
        """Return what the matrix (K, N) keeps for its parameters, one or one for each column."""
        scale, zero = np.asarray(scale, np.float32), np.asarray(zero_point)

        def make() -> DynamicWeight:
            packed = product.packed_matrix(matrix, zero)
            scales = np.array(np.broadcast_to(scale.reshape(-1), packed.sums.shape))
            return cls(packed, packed.lanes_of_zero_point(0), scales)

        found: DynamicWeight = form(matrix, ("dynamic", scale.tobytes(), zero.tobytes()), make)
        return found

    def product(self, rows: F32, start: F32 | None = None) -> F32:
        """Return ``start + f32(sum) * (s * scale)``; ``start`` is (M, N) or (1, N).

        ``s`` is that of ``onnx::DynamicQuantizeLinear`` under engine ort.
        """
        (count, depth), columns = rows.shape, self.scales.size
        y = np.empty((count, columns), np.float32)
        if y.size == 0:
            return y
        # This thread's memory: the bytes of the rows, then the sums.
        begin = -(-(rows.size + SLACK) // _LINE) * _LINE
        memory = buffer(begin + 4 * y.size)
        total = memory[begin : begin + 4 * y.size].view(np.int32)
        values = np.ascontiguousarray(rows).reshape(-1)
        scale, zero = quantize(values, np.float32(1), memory[: rows.size])
        self._job(count, depth).run(memory, total)
        has_start = start is not None
        added = y if start is None else start
        _scale(total, self.packed.sums, zero, scale, self.scales, has_start, added, y)
        return y

    def _job(self, count: int, depth: int) -> Job:
        job = self.jobs.get(count)
        if job is None:
            if len(self.jobs) >= KEPT:
                self.jobs.clear()
            columns = self.scales.size
            walk = matrix_walk(count, depth, self.packed.passes, columns)
            job = dense(walk, self.packed, self.lanes, "sum", UNREAD, count * columns)
            self.jobs[count] = job
        return job


@jit
def _scale(
    total: Any,
    sums: Any,
    zero: int,
    scale: np.float32,
    scales: Any,
    has_start: bool,
    start: Any,
    y: Any,
) -> None:
    columns = y.shape[1]
    for i in range(y.shape[0]):
        row = i if start.shape[0] > 1 else 0
        for j in range(columns):
            whole = np.int32(total[i * columns + j] - np.int32(zero) * sums[j])
            real = np.float32(np.float32(whole) * np.float32(scale * scales[j]))
            y[i, j] = np.float32(start[row, j] + real) if has_start else real
