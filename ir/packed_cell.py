"""``PackedCell``: what an engine packed for one cell of a recurrent layer."""

from __future__ import annotations

from typing import NamedTuple

from refquant.ir.module import Packed


class PackedCell(NamedTuple):
    """Parameters of one layer and direction: the products with the input and the hidden state.

    Parameters
    ----------
    ih, hh : Packed
        Weight and bias of the input, and of the hidden state.
    reduce_range : bool or None
        Whether activations are quantized to 7 bits; None for float16 weights, where they are
        not quantized.
    """

    ih: Packed
    hh: Packed
    reduce_range: bool | None
