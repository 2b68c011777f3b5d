"""The combinations of dtypes that back-ends support."""

from __future__ import annotations

from refquant.backend_config.backend_config import DTypeConfig, DTypeWithConstraints
from refquant.ir.types import float16, float32, qint8, quint4x2, quint8

weighted_op_quint8_dtype_config = DTypeConfig(quint8, quint8, qint8, float32)
default_op_quint8_dtype_config = DTypeConfig(quint8, quint8)
default_op_fp16_dtype_config = DTypeConfig(float16, float16, float16, float16)
default_dynamic_int8_dtype_config = DTypeConfig(quint8, float32, qint8, float32, is_dynamic=True)
default_dynamic_float16_dtype_config = DTypeConfig(
    float16, float32, float16, float32, is_dynamic=True
)
input_output_only_quint8_dtype_config = DTypeConfig(quint8, quint8, float32, float32)
weight_only_quint8_dtype_config = DTypeConfig(float32, float32, quint8)
weight_only_quint4x2_dtype_config = DTypeConfig(float32, float32, quint4x2)
weight_only_qint8_dtype_config = DTypeConfig(float32, float32, qint8)

# TensorRT
weighted_op_qint8_dtype_config = DTypeConfig(qint8, qint8, qint8, float32)
non_weighted_op_qint8_dtype_config = DTypeConfig(qint8, qint8)

# XNNPACK: scales not below 2**-12, and weights without -128.
_activation = DTypeWithConstraints(qint8, scale_min_lower_bound=2**-12)
_weight = DTypeWithConstraints(
    qint8, quant_min_lower_bound=-127, quant_max_upper_bound=127, scale_min_lower_bound=2**-12
)
weighted_op_qint8_symmetric_dtype_config = DTypeConfig(_activation, _activation, _weight, float32)
default_op_qint8_symmetric_dtype_config = DTypeConfig(_activation, _activation)
default_dynamic_qint8_dtype_config = DTypeConfig(
    _activation, float32, _weight, float32, is_dynamic=True
)

# Ops whose output range is known beforehand.
fixed_qparams_0to1_constraints = DTypeWithConstraints(
    *(quint8, 0, 255), scale_exact_match=1 / 256, zero_point_exact_match=0
)
fixed_qparams_neg1to1_constraints = DTypeWithConstraints(
    *(quint8, 0, 255), scale_exact_match=2 / 256, zero_point_exact_match=128
)
