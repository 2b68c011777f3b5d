"""What all fake-quants share: the call, two switches, and the check of the range."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from refquant.factory import HasFactories
from refquant.ir.errors import VerifyError
from refquant.ir.qtensor import Array
from refquant.ir.types import DType, int32, qint32
from refquant.observer_base import observable
from refquant.stateful import Stateful


class FakeQuantizeBase(ABC, HasFactories, Stateful):
    """Base of all fake-quants: two switches, in the state as torch has them."""

    fake_quant_enabled: Array
    observer_enabled: Array

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fake_quant_enabled", np.array([1], np.uint8))
        self.register_buffer("observer_enabled", np.array([1], np.uint8))

    @property
    def role(self) -> str:
        """What a graph calls it for."""
        return "fake_quantize"

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Observe ``x`` and return it fake-quantized; may fail half-way."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Array, Array]:
        """Return scale and zero point."""

    def __call__(self, x: Array) -> Array:
        """Observe ``x`` and return it fake-quantized, as far as both are switched on.

        Raises
        ------
        VerifyError
            If ``x`` does not fit; then nothing has changed.
        """
        data = observable(type(self).__name__, x)
        with self.unchanged_on_error():
            return self.forward(data)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch the rounding on or off; observing is not touched."""
        self.fake_quant_enabled = np.array([1 if enabled else 0], self.fake_quant_enabled.dtype)

    def disable_fake_quant(self) -> None:
        """Switch the rounding off."""
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Switch observing on or off; the rounding is not touched."""
        self.observer_enabled = np.array([1 if enabled else 0], self.observer_enabled.dtype)

    def disable_observer(self) -> None:
        """Switch observing off."""
        self.enable_observer(False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        return ""


def check_within(dtype: DType, quant_min: int, quant_max: int) -> None:
    """Refuse a range that is empty or exceeds what the dtype stores.

    Raises
    ------
    VerifyError
        Saying which.
    """
    if quant_min > quant_max:
        raise VerifyError(f"quant_min must not exceed quant_max, got [{quant_min}, {quant_max}]")
    if dtype.is_floating_point:
        raise VerifyError(f"a fake-quant's dtype must be an integer type, got {dtype}")
    stored = np.iinfo(np.int32 if dtype in (qint32, int32) else dtype.storage)
    if quant_min < stored.min or quant_max > stored.max:
        raise VerifyError(
            f"the range [{quant_min}, {quant_max}] is out of bound for {dtype}, "
            f"[{stored.min}, {stored.max}]"
        )
