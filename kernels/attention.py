"""``aten::scaled_dot_product_attention`` on floats."""

from __future__ import annotations

import numpy as np

from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.checks import broadcast
from refquant.kernels.products import check_equal, check_float, check_rank, joined, product


def reference(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    """Return ``softmax(query @ key.T * scale + mask) @ value``.

    Sums and exponentials are not in torch's order; see ``products.py`` for the bound of the
    products, and allow 1e-5 relative to the largest value for the whole.

    Parameters
    ----------
    query : float tensor (..., L, E)
        One row per query.
    key : float tensor (..., S, E)
        One row per key.
    value : float tensor (..., S, V)
        What is averaged.
    attn_mask : bool or float tensor that broadcasts to (..., L, S), or None
        False positions are left out; floats are added to the scores.
    dropout_p : float
        Must be 0: evaluation only.
    is_causal : bool
        Query i sees keys 0..i.
    scale : float or None
        Factor of the scores; None means 1 / sqrt(E).

    Returns
    -------
    float tensor (..., L, V)

    Raises
    ------
    VerifyError
        If types or lengths do not fit.

    Examples
    --------
    >>> x = np.float32([[1, 0], [0, 1]])
    >>> reference(x, x, x, is_causal=True)[0]
    array([1., 0.], dtype=float32)
    """
    factor = query.dtype.type(query.shape[-1] ** -0.5 if scale is None else scale)
    scores = (query * factor) @ key.swapaxes(-2, -1)
    if is_causal:
        attn_mask = np.tri(*scores.shape[-2:], dtype=np.bool_)
    if attn_mask is not None and attn_mask.dtype == np.bool_:
        scores = np.where(attn_mask, scores, -np.inf).astype(scores.dtype)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray((weights / weights.sum(-1, keepdims=True)) @ value)


def infer(
    query: TensorType,
    key: TensorType,
    value: TensorType,
    attn_mask: TensorType | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> TensorType:
    """Check that queries fit keys and keys fit values."""
    op = "scaled_dot_product_attention"
    check_float(op, query, key, value)
    for operand in (query, key, value):
        check_rank(op, operand, 2)
    check_equal(op, "dropout_p", int(dropout_p > 0), 0)
    check_equal(op, "length of keys", key.shape[-1], query.shape[-1])
    check_equal(op, "number of values", value.shape[-2], key.shape[-2])
    outer = broadcast(op, query.shape[:-2], key.shape[:-2], value.shape[:-2])
    if attn_mask is not None:
        broadcast(op, attn_mask.shape, joined(outer, query.shape[-2], key.shape[-2]))
    return TensorType(query.dtype, joined(outer, query.shape[-2], value.shape[-1]))


_Q = np.zeros((1, 2, 2), np.float32)
_V = np.array([[[1.0], [3.0]]], np.float32)

OPS = (
    product(
        "aten::scaled_dot_product_attention",
        reference,
        infer,
        Case("mean", (_Q, _Q, _V), {}, [[[2], [2]]], "equal scores average the values"),
        Case("causal", (_Q, _Q, _V), {"is_causal": True}, [[[1], [2]]], "the first sees itself"),
        Case(
            "mask",
            (_Q, _Q, _V, np.array([[True, False], [False, True]])),
            {},
            [[[1], [3]]],
            "False is left out",
        ),
        source="transformers/attention",
    ),
)
