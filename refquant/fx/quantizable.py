"""torch's own custom modules: the LSTM and attention that are quantized gate by gate.

What is inside them is observed and converted as eager mode does it: an observer after each linear
layer, each arithmetic step and each stub.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.fx.lstm import QUANTIZABLE_ATTENTION, QUANTIZABLE_LSTM
from refquant.fx.pack import linear_prepack
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.module import Module
from refquant.ir.types import qint8, quint8
from refquant.quantize_weight import quantize_weight_eager

_NNQ = "torch.ao.nn.quantized."
_FLOAT_FUNCTIONAL = f"{_NNQ}FloatFunctional"
_QUANT_STUB = "torch.ao.quantization.stubs.QuantStub"
_OBSERVED = ("torch.nn.Linear", _FLOAT_FUNCTIONAL, _QUANT_STUB)
QUANTIZED_LSTM = f"{_NNQ}LSTM"


def _arithmetic() -> Module:
    return Module(_FLOAT_FUNCTIONAL)


def _linear(weight: Any, bias: Any) -> Module:
    rows, columns = weight.shape
    sizes = {"in_features": columns, "out_features": rows}
    return Module("torch.nn.Linear", sizes, {"weight": weight, "bias": bias})


def _check(module: Any, kind: str) -> Any:
    if module.kind != kind:
        raise VerifyError(f"expected {kind}, got {module.kind}")
    if module.training:
        raise UnsupportedError(f"{kind} as a custom module in training; call model.eval() first")
    return module.config.get("qconfig")


def _observe(root: Module, qconfig: Any) -> Module:
    """Give each linear layer, arithmetic step and stub an observer, and all the QConfig."""
    for _, module in list(root.named_modules()):
        if not isinstance(module, Module):
            continue
        module.config["qconfig"] = qconfig
        if module.kind in _OBSERVED and qconfig is not None:
            module.parts["activation_post_process"] = qconfig.activation()
    return root


# ---- LSTM


def observed_lstm(module: Module) -> Module:
    """Return the quantizable form of ``torch.nn.LSTM``, with observers."""
    qconfig = _check(module, "torch.nn.LSTM")
    keys = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")
    config = {key: module.config[key] for key in keys}
    config["dropout"] = float(module.dropout)
    layers = Module("torch.nn.ModuleList")
    for index in range(module.num_layers):
        layers.parts[str(index)] = _layer(module, index)
    return _observe(Module(QUANTIZABLE_LSTM, config, {}, {"layers": layers}), qconfig)


def _layer(module: Module, index: int) -> Module:
    config = {"batch_first": False, "bidirectional": module.bidirectional}
    parts = {"layer_fw": _direction(module, f"l{index}")}
    if module.bidirectional:
        parts["layer_bw"] = _direction(module, f"l{index}_reverse")
    return Module("torch.ao.nn.quantizable._LSTMLayer", config, {}, parts)


def _direction(module: Module, place: str) -> Module:
    state = module.state
    weights = state[f"weight_ih_{place}"], state[f"weight_hh_{place}"]
    biases = state.get(f"bias_ih_{place}"), state.get(f"bias_hh_{place}")
    config = {
        "input_size": weights[0].shape[1],
        "hidden_size": weights[1].shape[1],
        "bias": biases[0] is not None,
        "split_gates": False,
        "initial_hidden_state_qparams": (1.0, 0),
        "initial_cell_state_qparams": (1.0, 0),
        "hidden_state_dtype": quint8,
        "cell_state_dtype": quint8,
    }
    parts = {
        "igates": _linear(weights[0], biases[0]),
        "hgates": _linear(weights[1], biases[1]),
        "gates": _arithmetic(),
        "input_gate": Module("torch.nn.Sigmoid"),
        "forget_gate": Module("torch.nn.Sigmoid"),
        "cell_gate": Module("torch.nn.Tanh"),
        "output_gate": Module("torch.nn.Sigmoid"),
        "fgate_cx": _arithmetic(),
        "igate_cgate": _arithmetic(),
        "fgate_cx_igate_cgate": _arithmetic(),
        "ogate_cy": _arithmetic(),
    }
    cell = Module("torch.ao.nn.quantizable.LSTMCell", config, {}, parts)
    return Module("torch.ao.nn.quantizable._LSTMSingleLayer", {}, {}, {"cell": cell})


def quantized_lstm(module: Module) -> Module:
    """Return the quantized form of an observed LSTM."""
    made = _convert(module)
    made.kind = QUANTIZED_LSTM
    return made


def _convert(module: Module) -> Module:
    """Replace the observed parts of a module by quantized ones."""
    made = Module(
        module.kind,
        {key: value for key, value in module.config.items() if key != "qconfig"},
        dict(module.state),
        training=module.training,
    )
    for name, part in module.parts.items():
        if name != "activation_post_process":
            made.parts[name] = _convert_part(part)
    return made


def _convert_part(part: Module) -> Module:
    observer = part.parts.get("activation_post_process")
    if observer is None or part.kind not in _OBSERVED:
        return _convert(part)
    scale, zero_point = observer.calculate_qparams()
    output = {
        "scale": float(np.asarray(scale).reshape(-1)[0]),
        "zero_point": int(np.asarray(zero_point).reshape(-1)[0]),
    }
    if part.kind == _FLOAT_FUNCTIONAL:
        identity = Module("torch.nn.Identity", training=True)
        parts = {"activation_post_process": identity}
        return Module(f"{_NNQ}QFunctional", output, {}, parts, training=True)
    if part.kind == _QUANT_STUB:
        state = {"scale": np.asarray(scale), "zero_point": np.asarray(zero_point)}
        return Module(f"{_NNQ}Quantize", {"dtype": observer.dtype}, state, training=True)
    weight = quantize_weight_eager(part.state["weight"], part.config["qconfig"].weight())
    packed = Module(
        f"{_NNQ}LinearPackedParams",
        {"dtype": qint8},
        {"_packed_params": linear_prepack(weight, part.state["bias"])},
        training=True,
    )
    sizes = {key: part.config[key] for key in ("in_features", "out_features")}
    parts = {"_packed_params": packed}
    return Module(f"{_NNQ}Linear", sizes | output, {}, parts, training=True)


# ---- attention


def observed_attention(module: Module) -> Module:
    """Return the quantizable form of ``torch.nn.MultiheadAttention``, with observers."""
    qconfig = _check(module, "torch.nn.MultiheadAttention")
    made = Module(QUANTIZABLE_ATTENTION, dict(module.config), dict(module.state))
    out = module.parts["out_proj"]
    made.parts["out_proj"] = _linear(out.state["weight"], out.state["bias"])
    width = module.embed_dim
    for index, name in enumerate(("q", "k", "v")):
        rows = slice(index * width, (index + 1) * width)
        if module.config["_qkv_same_embed_dim"]:
            weight = module.state["in_proj_weight"][rows]
        else:
            weight = module.state[f"{name}_proj_weight"]
        bias = module.state["in_proj_bias"]
        own = _linear(weight, None if bias is None else bias[rows])
        made.parts[f"linear_{name.upper()}"] = own
    made.parts["q_scaling_product"] = _arithmetic()
    for name in ("quant_attn_output", "quant_attn_output_weights"):
        made.parts[name] = Module(_QUANT_STUB)
    for name in ("q", "k", "v"):
        made.parts[f"dequant_{name}"] = Module("torch.ao.quantization.stubs.DeQuantStub")
    return _observe(made, qconfig)


def quantized_attention(module: Module) -> Module:
    """Refuse: torch's graph mode cannot calibrate an attention that it observed."""
    raise UnsupportedError(
        f"{module.kind} as a static custom module: torch observes the tuple it returns, so that "
        "the model cannot be calibrated"
    )


OBSERVED: dict[str, Callable[[Any], Any]] = {
    QUANTIZABLE_LSTM: observed_lstm,
    QUANTIZABLE_ATTENTION: observed_attention,
}
QUANTIZED: dict[str, Callable[[Any], Any]] = {
    QUANTIZED_LSTM: quantized_lstm,
    f"{_NNQ}MultiheadAttention": quantized_attention,
}
