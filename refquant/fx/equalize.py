"""Equalization: input columns are scaled so that they are as wide as the weight's columns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refquant.defects import reproduce
from refquant.equalization import (
    _InputEqualizationObserver,
    _WeightEqualizationObserver,
    calculate_equalization_scale,
)
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Call, Program
from refquant.ir.qtensor import Array

_FUSED = frozenset(
    f"torch.ao.nn.intrinsic.{name}"
    for name in ("LinearReLU", "ConvReLU1d", "ConvReLU2d", "ConvReLU3d")
)
_MODULES = frozenset(f"torch.nn.{name}" for name in ("Linear", "Conv1d", "Conv2d", "Conv3d"))
_FUNCTIONS = frozenset(
    f"torch.nn.functional.{name}" for name in ("linear", "conv1d", "conv2d", "conv3d")
)


def supports_equalization(call: Call, program: Program) -> bool:
    """Whether a call's input and weight can be scaled against each other."""
    if call.kind == "call_module":
        return getattr(program.root.get(call.target), "kind", "") in _MODULES | _FUSED
    return call.kind == "call_function" and call.target in _FUNCTIONS


def equalize(program: Program, qconfigs: Mapping[str, Any]) -> None:
    """Scale inputs and weights by what the equalization observers saw, and remove these.

    Parameters
    ----------
    program : Program
        Prepared and calibrated; changed in place.
    qconfigs : mapping
        The EqualizationQConfig of each call by its name.
    """
    job = _Equalization(program, qconfigs)
    job.choose_scales()
    for call in list(program):
        if isinstance(job.module(call), _InputEqualizationObserver):
            job.scale_input(call)
        elif call.name in job.weights and not job.scale_weight(call):
            return


class _Equalization:
    """The scales of one model, and the changes they need."""

    def __init__(self, program: Program, qconfigs: Mapping[str, Any]) -> None:
        self.program, self.qconfigs = program, qconfigs
        self.weights: dict[str, Any] = {}  # the weight's observer by the name of the layer's call

    def module(self, call: Any) -> Any:
        """Return the module that a call is of, or None."""
        if isinstance(call, Call) and call.kind == "call_module":
            return self.program.root.get(call.target)
        return None

    def choose_scales(self) -> None:
        for call in self.program:
            observer = self.module(call)
            if not isinstance(observer, _InputEqualizationObserver):
                continue
            layer = next((u for u in call.users if supports_equalization(u, self.program)), None)
            if layer is None:
                raise VerifyError(f"{call.name}: no layer follows that can be equalized")
            weight = self.weight_observer(layer)
            if weight is not None:
                try:
                    scale = calculate_equalization_scale(observer, weight)
                    observer.set_equalization_scale(scale)
                except VerifyError as error:
                    raise VerifyError(f"{layer.name}: {error}") from None
                weight.set_equalization_scale(scale)
                self.weights[layer.name] = weight

    def weight_observer(self, layer: Call) -> Any:
        """Return the observer of a layer's weight, which for a module sees the weight only now."""
        if layer.kind == "call_function":
            found = self.weight_observer_call(layer)
            return None if found is None else self.module(found)
        qconfig = self.qconfigs.get(layer.name)
        if qconfig is None:
            raise VerifyError(f"{layer.name}: no equalization qconfig")
        made = qconfig.weight()
        if not isinstance(made, _WeightEqualizationObserver):
            raise VerifyError(
                f"{layer.name}: expected a _WeightEqualizationObserver, got {type(made).__name__}"
            )
        made(self.inner(layer).state["weight"])
        return made

    def weight_observer_call(self, layer: Call) -> Call | None:
        weights = layer.args[1:2] + tuple(layer.kwargs.get(k) for k in ("weight",))
        for arg in weights:
            if isinstance(self.module(arg), _WeightEqualizationObserver):
                return arg  # type: ignore[no-any-return]
        return None

    def inner(self, layer: Call) -> Module:
        """Return the module with the weight, in a fused one the first."""
        module: Module = self.module(layer)
        return module[0] if module.kind in _FUSED else module

    # ---- inputs

    def scale_input(self, call: Call) -> None:
        """Remove an input's observer; multiply by its scale unless the layer before does."""
        quantizer: Call = call.args[0]
        if not quantizer.args:
            raise VerifyError(f"{call.name}: the input of an equalized layer is not quantized")
        before: Call = quantizer.args[0]
        if supports_equalization(before, self.program) or "relu" in before.name:
            self.remove(call, quantizer)
            return
        observer = self.module(call)
        self.scale_range(self.own_observer(call, quantizer), observer)
        name = f"{before.name}_equalization_scale0".replace(".", "_")
        self.program.root.set(name, np.asarray(observer.equalization_scale))
        scale = self.program.call("get_attr", name, before=quantizer)
        scaled = self.program.call("call_function", "torch.mul", (before, scale), after=scale)
        quantizer.replace_input(before, scaled)
        self.remove(call, quantizer)

    def own_observer(self, call: Call, quantizer: Call) -> Any:
        """Return the observer of an input; if another value shares it, a copy, or do as torch."""
        observer = self.module(quantizer)
        others = [
            other
            for other, module in self.program.owners()
            if module is observer and other is not quantizer
        ]
        if others and not reproduce("equalized-shared-observer", call.name):
            observer = copy.deepcopy(observer)
            self.program.root.set(quantizer.target, observer)
        return observer

    def scale_range(self, quantizer: Any, observer: _InputEqualizationObserver) -> None:
        if getattr(quantizer, "role", "") != "observer":
            return
        low, high = observer.calculate_scaled_minmax()
        if low is not None:
            quantizer.min_val = np.asarray(low)
            quantizer.max_val = np.asarray(high)

    def remove(self, call: Call, instead: Call) -> None:
        call.replace_all_uses_with(instead)
        self.program.erase(call)

    # ---- weights

    def scale_weight(self, layer: Call) -> bool:
        """Scale a layer's weight; False where nothing further is to be done in the model."""
        scale = _unless_one(self.weights[layer.name].equalization_scale)
        following = self.next_scale(layer)
        if layer.kind == "call_module":
            if scale is not None:
                inner = self.inner(layer)
                _scale(inner.state, "weight", "bias", scale, following)
            return True
        observer = self.weight_observer_call(layer)
        if scale is not None and observer is not None:
            self.scale_constants(layer, observer.args[0], scale, following)
        if observer is None:
            return False
        quantizer = observer.args[0]
        self.module(quantizer).reset_min_max_vals()
        self.remove(observer, quantizer)
        return True

    def scale_constants(
        self, layer: Call, quantizer: Call, scale: Array, following: Array | None
    ) -> None:
        source = quantizer.args[0]
        if source.kind != "get_attr":
            raise VerifyError(
                f"{layer.name}: an equalized weight must be a parameter or buffer of the model, "
                f"got {source.name}"
            )
        root = self.program.root
        is_bias = (a for a in layer.args if isinstance(a, Call) and a.kind == "get_attr")
        bias = next((a.target for a in is_bias if "bias" in a.name), None)
        values = {"weight": root.get(source.target), "bias": root.get(bias) if bias else None}
        _scale(values, "weight", "bias", scale, following)
        root.set(source.target, values["weight"])
        if bias:
            root.set(bias, values["bias"])

    def next_scale(self, layer: Call) -> Array | None:
        """Return the scale of the layer after this one, if that is equalized too."""

        def following(call: Call, wanted: Callable[[Call], bool]) -> Call | None:
            return next((user for user in call.users if wanted(user)), None)

        def is_relu(call: Call) -> bool:
            return getattr(self.module(call), "kind", "") == "torch.nn.ReLU"

        def is_observer(call: Call) -> bool:
            return getattr(self.module(call), "role", "") == "observer"

        relu = following(layer, is_relu) or following(
            layer, lambda call: call.target == "torch.nn.functional.relu"
        )
        observed = following(relu or layer, is_observer)
        if observed is None:
            return None
        found = following(
            observed, lambda call: isinstance(self.module(call), _InputEqualizationObserver)
        )
        return None if found is None else _unless_one(self.module(found).equalization_scale)


def _unless_one(scale: Any) -> Array | None:
    scale = np.asarray(scale)
    return None if scale.size == 1 and scale.reshape(-1)[0] == 1 else scale


def _along(scale: Array, axis: int, value: Array) -> Array:
    shape = [1] * value.ndim
    shape[axis] = value.shape[axis]
    return scale.reshape(shape)


def _scale(
    state: dict[str, Any], weight: str, bias: str, scale: Array, following: Array | None
) -> None:
    """Divide the weight's columns by their scale; multiply rows and bias by the next layer's."""
    value = state[weight]
    state[weight] = value * (np.float32(1) / _along(scale, 1, value))
    if following is None:
        return
    state[weight] = state[weight] * _along(following, 0, value)
    if state.get(bias) is not None:
        state[bias] = state[bias] * _along(following, 0, state[bias])
