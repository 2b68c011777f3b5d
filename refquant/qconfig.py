"""QConfigs: which observers an operator's activations and weight get, and torch's default ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from refquant.factory import Factory
from refquant.fake_quantize import (
    FakeQuantize,
    FakeQuantizeBase,
    FusedMovingAvgObsFakeQuantize,
    default_dynamic_fake_quant,
    default_embedding_fake_quant,
    default_embedding_fake_quant_4bit,
    default_fake_quant,
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant,
    default_per_channel_weight_fake_quant,
    default_weight_fake_quant,
    fused_per_channel_wt_fake_quant_range_neg_127_to_127,
    fused_wt_fake_quant_range_neg_127_to_127,
)
from refquant.ir.errors import VerifyError
from refquant.ir.types import float16, float32, qint8, quint8
from refquant.observer import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    ObserverBase,
    PlaceholderObserver,
    default_debug_observer,
    default_dynamic_quant_observer,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    default_observer,
    default_per_channel_weight_observer,
    default_placeholder_observer,
    default_reuse_input_observer,
    default_weight_observer,
    per_channel_weight_observer_range_neg_127_to_127,
    weight_observer_range_neg_127_to_127,
)
from refquant.observer_base import caller

Constructor = Callable[..., Any]
BACKENDS = ("fbgemm", "x86", "qnnpack", "onednn")


class Identity:
    """Stands where nothing is to be observed: returns what it is called with."""

    def __call__(self, x: Any) -> Any:
        """Return ``x``."""
        return x


class _Pair(NamedTuple):
    activation: Constructor | None
    weight: Constructor | None


class QConfig(_Pair):
    """How to observe an operator: constructors for its activations and for its weight.

    Parameters
    ----------
    activation, weight : observer or fake-quant class, or factory
        Each use constructs a new one. Arguments are given by ``with_args``.

    Raises
    ------
    VerifyError
        If an instance is given instead of a constructor.

    Examples
    --------
    >>> qconfig = QConfig(
    ...     activation=MinMaxObserver.with_args(dtype=qint8),
    ...     weight=default_observer.with_args(dtype=qint8),
    ... )
    >>> qconfig.weight().dtype
    refquant.qint8
    """

    __slots__ = ()

    def __new__(cls, activation: Constructor | None, weight: Constructor | None) -> QConfig:
        """Refuse instances."""
        for what, given in (("activation", activation), ("weight", weight)):
            _refuse_instance(cls, what, given)
        return super().__new__(cls, activation, weight)


class QConfigDynamic(_Pair):
    """The dynamic variant; deprecated in torch, use ``QConfig``.

    Parameters
    ----------
    activation, weight : observer or fake-quant class, or factory
        ``Identity`` observes nothing.

    Raises
    ------
    VerifyError
        If the weight is an instance instead of a constructor.
    """

    __slots__ = ()

    def __new__(
        cls, activation: Constructor = Identity, weight: Constructor = Identity
    ) -> QConfigDynamic:
        """Warn, and refuse instances."""
        warnings.warn(
            "`QConfigDynamic` is deprecated in torch, please use `QConfig` instead",
            FutureWarning,
            stacklevel=caller(),
        )
        _refuse_instance(cls, "weight", weight)
        return super().__new__(cls, activation, weight)


def _refuse_instance(cls: type, what: str, given: Any) -> None:
    if isinstance(given, ObserverBase | FakeQuantizeBase):
        kind = type(given).__name__
        raise VerifyError(
            f"{cls.__name__}: {what} must be a class or a factory, got an instance of {kind}; "
            f"use {kind}.with_args(...)"
        )


def get_default_qconfig(backend: str = "x86", version: int = 0) -> QConfig:
    """Return the default QConfig for quantization after training.

    Parameters
    ----------
    backend : str
        x86, fbgemm, qnnpack or onednn.
    version : int
        0.

    Raises
    ------
    VerifyError
        If backend or version is unknown.

    Examples
    --------
    >>> get_default_qconfig("fbgemm").activation
    functools.partial(<class 'refquant.histogram_observer.HistogramObserver'>, reduce_range=True){}
    """
    _check("get_default_qconfig", backend, version, (0,))
    return QConfig(
        activation=HistogramObserver.with_args(reduce_range=backend in ("fbgemm", "x86")),
        weight=default_weight_observer
        if backend == "qnnpack"
        else default_per_channel_weight_observer,
    )


def get_default_qat_qconfig(backend: str = "x86", version: int = 1) -> QConfig:
    """Return the default QConfig for quantization-aware training.

    Parameters
    ----------
    backend : str
        x86, fbgemm, qnnpack or onednn.
    version : int
        0 for ``FakeQuantize``, 1 for ``FusedMovingAvgObsFakeQuantize``.

    Raises
    ------
    VerifyError
        If backend or version is unknown.
    """
    _check("get_default_qat_qconfig", backend, version, (0, 1))
    kind = FusedMovingAvgObsFakeQuantize if version else FakeQuantize
    reduced = {} if backend == "onednn" else {"reduce_range": backend != "qnnpack"}
    weights = {
        (0, True): default_weight_fake_quant,
        (0, False): default_per_channel_weight_fake_quant,
        (1, True): default_fused_wt_fake_quant,
        (1, False): default_fused_per_channel_wt_fake_quant,
    }
    return QConfig(
        activation=kind.with_args(
            observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, **reduced
        ),
        weight=weights[version, backend == "qnnpack"],
    )


def _check(function: str, backend: str, version: int, versions: tuple[int, ...]) -> None:
    if backend not in BACKENDS:
        raise VerifyError(
            f"{function}: backend must be one of {', '.join(BACKENDS)}, got {backend}"
        )
    if version not in versions:
        accepted = " or ".join(map(str, versions))
        raise VerifyError(f"{function}: version must be {accepted}, got {version}")


def qconfig_equals(q1: Any, q2: Any) -> bool:
    """Whether two QConfigs, or None, construct the same.

    Examples
    --------
    >>> qconfig_equals(get_default_qconfig("x86"), get_default_qconfig("fbgemm"))
    True
    """
    if q1 is None or q2 is None:
        return q1 is q2
    return _constructs_same(q1.activation, q2.activation) and _constructs_same(
        q1.weight, q2.weight
    )


def _constructs_same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Factory) and isinstance(other, Factory)):
        return bool(one == other)
    mine, theirs = dict(one.p.keywords), dict(other.p.keywords)
    observers = mine.get("observer"), theirs.get("observer")
    if None not in observers:
        if not _constructs_same(*observers):
            return False
        mine["observer"] = theirs["observer"]
    return (one.p.func, one.p.args, mine) == (other.p.func, other.p.args, theirs)


default_qconfig = QConfig(activation=default_observer, weight=default_weight_observer)
default_debug_qconfig = QConfig(activation=default_debug_observer, weight=default_weight_observer)
default_per_channel_qconfig = QConfig(
    activation=default_observer, weight=default_per_channel_weight_observer
)
default_dynamic_qconfig = QConfig(
    activation=default_dynamic_quant_observer, weight=default_weight_observer
)
float16_dynamic_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=float16, is_dynamic=True),
    weight=PlaceholderObserver.with_args(dtype=float16),
)
float16_static_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=float16),
    weight=PlaceholderObserver.with_args(dtype=float16),
)
per_channel_dynamic_qconfig = QConfig(
    activation=default_dynamic_quant_observer, weight=default_per_channel_weight_observer
)
float_qparams_weight_only_qconfig = QConfig(
    activation=default_placeholder_observer, weight=default_float_qparams_observer
)
float_qparams_weight_only_qconfig_4bit = QConfig(
    activation=default_placeholder_observer, weight=default_float_qparams_observer_4bit
)
default_qat_qconfig = QConfig(activation=default_fake_quant, weight=default_weight_fake_quant)
default_dynamic_qat_qconfig = QConfig(
    activation=default_dynamic_fake_quant, weight=default_weight_fake_quant
)
default_weight_only_qconfig = QConfig(activation=Identity, weight=default_weight_fake_quant)
default_activation_only_qconfig = QConfig(activation=default_fake_quant, weight=Identity)
default_qat_qconfig_v2 = QConfig(
    activation=default_fused_act_fake_quant, weight=default_fused_wt_fake_quant
)
default_reuse_input_qconfig = QConfig(activation=default_reuse_input_observer, weight=NoopObserver)
default_symmetric_qnnpack_qconfig = QConfig(
    activation=HistogramObserver.with_args(dtype=qint8, reduce_range=False, eps=2**-12),
    weight=weight_observer_range_neg_127_to_127,
)
default_per_channel_symmetric_qnnpack_qconfig = QConfig(
    activation=HistogramObserver.with_args(dtype=qint8, reduce_range=False, eps=2**-12),
    weight=per_channel_weight_observer_range_neg_127_to_127,
)
default_embedding_qat_qconfig = QConfig(
    activation=NoopObserver.with_args(dtype=float32), weight=default_embedding_fake_quant
)
default_embedding_qat_qconfig_4bit = QConfig(
    activation=NoopObserver.with_args(dtype=float32), weight=default_embedding_fake_quant_4bit
)
default_quint8_weight_qconfig = QConfig(activation=HistogramObserver, weight=MinMaxObserver)
_symmetric_qat_activation = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=-128,
    quant_max=127,
    dtype=qint8,
    reduce_range=False,
    eps=2**-12,
)
default_symmetric_qnnpack_qat_qconfig = QConfig(
    activation=_symmetric_qat_activation, weight=fused_wt_fake_quant_range_neg_127_to_127
)
default_per_channel_symmetric_qnnpack_qat_qconfig = QConfig(
    activation=_symmetric_qat_activation,
    weight=fused_per_channel_wt_fake_quant_range_neg_127_to_127,
)
_default_fp32_placeholder_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=float32),
    weight=PlaceholderObserver.with_args(dtype=float32),
)
_default_quint8_placeholder_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=quint8), weight=None
)
