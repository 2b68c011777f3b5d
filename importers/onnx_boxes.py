"""Choosing boxes that do not overlap: what ONNX's NonMaxSuppression computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.importers.onnx_builder import Array


def suppress(
    boxes: Array, scores: Array, most: int, overlap: Any, least: Any, by_centre: bool
) -> list[int]:
    """Return which boxes stay, from the highest score down.

    A box goes where it and one that stays share more than ``overlap`` of the area they cover
    together, in float32.

    Parameters
    ----------
    boxes : float32 array (boxes, 4)
        Two opposite corners as y, x, y, x; or with ``by_centre`` x, y, width, height.
    scores : float32 array (boxes,)
        Of equal ones the first comes first.
    most : int
        How many may stay.
    overlap : float32
        From 0 to 1.
    least : float32 or None
        Only boxes with a higher score stay.
    by_centre : bool
        How boxes are given.

    Examples
    --------
    >>> boxes = np.float32([[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 10, 1, 11]])
    >>> suppress(boxes, np.float32([0.9, 0.8, 0.7]), 3, np.float32(0.5), None, False)
    [0, 2]
    """
    low, high = _corners(boxes, by_centre)
    area = np.prod(high - low, axis=1)
    order = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        sides = np.minimum(high[best], high[order]) - np.maximum(low[best], low[order])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        together = area[best] + area[order] - shared
        is_box = (area[best] > 0) & (area[order] > 0) & (shared > 0) & (together > 0)
        share = np.divide(shared, together, out=np.zeros_like(shared), where=is_box)
        order = order[share <= overlap]
    return kept


def _corners(boxes: Array, by_centre: bool) -> tuple[Array, Array]:
    if by_centre:
        middle, half = boxes[:, :2], boxes[:, 2:] / 2
        return middle - half, middle + half
    corners = boxes.reshape(-1, 2, 2)
    return corners.min(1), corners.max(1)
