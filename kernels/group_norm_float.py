"""``aten::group_norm`` and ``aten::instance_norm``: float32, normalised per group of channels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType
from refquant.kernels import checks
from refquant.kernels.batch_norm import reference_float as batch_norm
from refquant.kernels.layout import empty_suggested

F32 = npt.NDArray[np.float32]


def reference(
    input: F32,
    weight: F32 | None = None,
    bias: F32 | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> F32:
    r"""Normalise a float32 array over groups of channels and all pixels.

    .. math:: y = (x - \mu) / \sqrt{\sigma^2 + \epsilon} \cdot weight_c + bias_c

    Computed in float64 and rounded once. torch works in float32 and sums in the order of its
    vector registers (channels-last the squares, too, whose mean then loses digits): compare with
    an absolute tolerance of ``5e-5 * max(1, |y|)`` times the largest weight, as long as the mean
    is not large against the deviation.

    Examples
    --------
    >>> reference(np.float32([[[1, 3], [5, 7]]]), num_groups=2, eps=0.0)
    array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """
    n, channels = input.shape[:2]
    x = input.reshape(n, num_groups, -1).astype(np.float64)
    centred = x - x.mean(axis=2, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=2, keepdims=True) + eps)
    y = y.reshape(input.shape)
    per_channel = (channels, *(1,) * (input.ndim - 2))
    y = y if weight is None else y * weight.reshape(per_channel)
    y = y if bias is None else y + bias.reshape(per_channel)
    out = empty_suggested(input, np.float32)
    out[...] = y
    return out


def reference_instance(
    input: F32,
    weight: F32 | None,
    bias: F32 | None,
    running_mean: F32 | None,
    running_var: F32 | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
    target: Target = Target(),
) -> F32:
    """Normalise each channel of a float32 array over its pixels, or by running statistics.

    ``aten::group_norm`` with one channel in a group (tolerance ``2e-6``); ``aten::batch_norm``,
    exactly, with ``use_input_stats=False``. C-contiguous.

    Examples
    --------
    >>> x = np.float32([[[1, 3], [5, 7]]])
    >>> reference_instance(x, None, None, None, None, True, 0.1, 0.0, False)
    array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """
    if use_input_stats:
        y = reference(input, weight, bias, num_groups=input.shape[1], eps=eps)
        return np.ascontiguousarray(y)
    assert running_mean is not None
    assert running_var is not None
    y = batch_norm(
        np.ascontiguousarray(input),
        weight,
        bias,
        running_mean,
        running_var,
        False,
        momentum,
        eps,
        cudnn_enabled,
        target,
    )
    return np.ascontiguousarray(y)


def infer(
    input: TensorType,
    weight: TensorType | None = None,
    bias: TensorType | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> TensorType:
    """Check dtypes, shapes and groups."""
    checks.is_float32("aten::group_norm", input)
    checks.groups("aten::group_norm", input, num_groups, weight, bias, 2)
    return input


def infer_instance(
    input: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    running_mean: TensorType | None,
    running_var: TensorType | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> TensorType:
    """Check dtypes and shapes; running statistics must be there if they are used."""
    op = "aten::instance_norm"
    checks.is_float32(op, input)
    checks.groups(op, input, None, weight, bias, 2)
    for name, x in (("running_mean", running_mean), ("running_var", running_var)):
        if x is not None and use_input_stats:
            raise UnsupportedError(f"{op}: updating {name} (training) is not supported")
        if x is None and not use_input_stats:
            raise VerifyError(f"{op}: {name} is needed without use_input_stats")
        checks.vector(op, x, input.shape[1], name)
    return input


OPS = (
    Op(
        name="aten::group_norm",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/cpu/group_norm_kernel.cpp::GroupNormKernelImpl",
        ),
        cases=(
            Case(
                "exact",
                (np.array([[[1, 3], [5, 7]]], np.float32),),
                {"num_groups": 2, "eps": 0.0},
                [[[-1, 1], [-1, 1]]],
                "variance 1",
            ),
        ),
    ),
    Op(
        name="aten::instance_norm",
        reference=reference_instance,
        infer=infer_instance,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_instance),
        source=("pytorch/pytorch/aten/src/ATen/native/Normalization.cpp::instance_norm",),
        cases=(
            Case(
                "exact",
                (np.array([[[1, 3], [5, 7]]], np.float32), None, None, None, None),
                {
                    **{"use_input_stats": True, "momentum": 0.1},
                    **{"eps": 0.0, "cudnn_enabled": False},
                },
                [[[-1, 1], [-1, 1]]],
                "variance 1",
            ),
        ),
    ),
)
