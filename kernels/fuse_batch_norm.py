"""Folding a batch norm into the weight and bias of the convolution or linear before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError

F32 = npt.NDArray[np.float32]


def fuse_conv_bn_weights(
    conv_w: F32,
    conv_b: F32 | None,
    bn_rm: F32,
    bn_rv: F32,
    bn_eps: float,
    bn_w: F32 | None,
    bn_b: F32 | None,
    transpose: bool = False,
) -> tuple[F32, F32]:
    r"""Return the weight and bias of a convolution that does the work of the batch norm too.

    .. math:: r = 1 / \sqrt{v + \epsilon}, \quad w' = w \cdot (\gamma r),
        \quad b' = (b - m) \cdot r \cdot \gamma + \beta

    in float32, each operation rounded, in the order written; square root and quotient are
    correctly rounded. QAT's convert folds by the same arithmetic.

    Parameters
    ----------
    conv_w : float32, (out, in / groups, ...), or (in, out / groups, ...) with ``transpose``
        Weight.
    conv_b : float32, (channels,), or None
        Bias; None counts as 0.
    bn_rm, bn_rv : float32, (channels,)
        Running mean and variance.
    bn_eps : float
        Added to the variance, as float32.
    bn_w, bn_b : float32, (channels,), or None
        Factor and offset; None counts as 1 and 0.
    transpose : bool
        Whether the convolution is transposed: its channels then are axis 1 of the weight.

    Returns
    -------
    weight : float32, shape of ``conv_w``
    bias : float32, (channels,)

    Raises
    ------
    VerifyError
        If a dtype is not float32 or a length does not fit.

    Examples
    --------
    >>> w, one = np.ones((1, 1, 1), np.float32), np.ones(1, np.float32)
    >>> fuse_conv_bn_weights(w, None, one, 3 * one, 1.0, 4 * one, one)
    (array([[[2.]]], dtype=float32), array([-1.], dtype=float32))
    """
    axis = 1 if transpose else 0
    bias, rsqrt, factor, offset = _operands(
        "fuse_conv_bn_weights", conv_w, axis, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b
    )
    shape = [1] * conv_w.ndim
    shape[axis] = -1
    with np.errstate(over="ignore", invalid="ignore"):
        weight = conv_w * (factor * rsqrt).reshape(shape)
        return weight, (bias - bn_rm) * rsqrt * factor + offset


def fuse_linear_bn_weights(
    linear_w: F32,
    linear_b: F32 | None,
    bn_rm: F32,
    bn_rv: F32,
    bn_eps: float,
    bn_w: F32,
    bn_b: F32,
) -> tuple[F32, F32]:
    r"""Return the weight and bias of a linear that does the work of the batch norm too.

    .. math:: r = \gamma \cdot (1 / \sqrt{v + \epsilon}), \quad w' = w \cdot r,
        \quad b' = (b - m) \cdot r + \beta

    Unlike for a convolution, the bias is multiplied by the product of both factors at once.

    Parameters
    ----------
    linear_w : float32, (out, in)
        Weight.
    linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b
        As for :func:`fuse_conv_bn_weights`.

    Raises
    ------
    VerifyError
        If a dtype is not float32 or a length does not fit.

    Examples
    --------
    >>> w, one = np.ones((1, 1), np.float32), np.ones(1, np.float32)
    >>> fuse_linear_bn_weights(w, None, one, 3 * one, 1.0, 4 * one, one)
    (array([[2.]], dtype=float32), array([-1.], dtype=float32))
    """
    bias, rsqrt, factor, offset = _operands(
        "fuse_linear_bn_weights", linear_w, 0, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b
    )
    with np.errstate(over="ignore", invalid="ignore"):
        scale = factor * rsqrt
        return linear_w * scale[:, np.newaxis], (bias - bn_rm) * scale + offset


def _operands(
    op: str,
    weight: F32,
    axis: int,
    bias: F32 | None,
    mean: F32,
    variance: F32,
    eps: float,
    factor: F32 | None,
    offset: F32 | None,
) -> tuple[F32, F32, F32, F32]:
    """Check everything; return bias, reciprocal deviation, factor and offset."""
    if weight.ndim <= axis or weight.dtype != np.float32:
        raise VerifyError(f"{op}: expected a float32 weight, got {weight.dtype} {weight.shape}")
    given: dict[str, Any] = {
        **{"bias": bias, "running mean": mean, "running variance": variance},
        **{"factor": factor, "offset": offset},
    }
    channels = weight.shape[axis]
    for name, array in given.items():
        if array is not None and (
            array.dtype != np.float32 or array.ndim != 1 or len(array) not in (1, channels)
        ):
            raise VerifyError(
                f"{op}: {name} must be float32 [{channels}] for the weight {list(weight.shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )
    zero, one = np.zeros_like(mean), np.ones_like(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        rsqrt = np.float32(1) / np.sqrt(variance + np.float32(eps))
    return (
        zero if bias is None else bias,
        rsqrt,
        one if factor is None else factor,
        zero if offset is None else offset,
    )
