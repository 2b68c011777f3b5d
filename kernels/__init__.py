"""Kernels: one op (or family that differs in rank only), one file; this table is the registry."""

from refquant.ir.op import OPS

OPS.declare(
    __name__,
    {
        "quantize_per_tensor": ("aten::quantize_per_tensor",),
    },
)
