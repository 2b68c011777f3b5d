"""Bytes of channels laid side by side."""

from __future__ import annotations

import numpy as np
import pytest

from refquant.kernels.transpose import channels_side_by_side


@pytest.mark.parametrize(
    "shape", [(1, 96, 11, 13), (2, 17, 5, 7), (3, 16, 1, 16), (2, 100, 19), (1, 16, 2, 3, 4)]
)
def test_channels_side_by_side_are_the_same_values(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    y = channels_side_by_side(x)
    np.testing.assert_array_equal(y, np.moveaxis(x, 1, -1))
    assert y.flags.c_contiguous
    view = x[:, :, ::-1]
    np.testing.assert_array_equal(channels_side_by_side(view), np.moveaxis(view, 1, -1))


def test_what_lies_side_by_side_already_is_not_copied() -> None:
    x = np.moveaxis(np.zeros((2, 8, 8, 32), np.uint8), -1, 1)
    assert np.shares_memory(channels_side_by_side(x), x)
