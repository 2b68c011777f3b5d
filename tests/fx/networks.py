"""Random networks for graph mode: blocks in any order, random mappings, back-ends and modes."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from flow import Case, quantized
from torch import nn
from torch.ao.quantization import (
    QConfigMapping,
    default_dynamic_qconfig,
    default_per_channel_qconfig,
    default_qat_qconfig,
    default_qconfig,
    float16_dynamic_qconfig,
)
from torch.ao.quantization.backend_config import (
    get_executorch_backend_config,
    get_fbgemm_backend_config,
    get_native_backend_config,
    get_onednn_backend_config,
    get_qnnpack_backend_config,
    get_tensorrt_backend_config,
)
from torch.ao.quantization.backend_config.x86 import get_x86_backend_config
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig

Shape = tuple[int, ...]
Step = Callable[[nn.Module, list[Any]], Any]


class Network(nn.Module):
    """Steps on a growing list of values; the last one, and now and then another, is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.steps: list[Step] = []
        self.also: int | None = None

    def forward(self, x: torch.Tensor) -> Any:
        values: list[Any] = [x]
        for step in self.steps:
            values.append(step(self, values))
        return values[-1] if self.also is None else (values[-1], [values[self.also]])


class Builder:
    """A network in the making: its values' shapes, and steps drawn at random."""

    def __init__(self, rng: random.Random, shape: Shape) -> None:
        self.rng, self.network, self.shapes = rng, Network(), [shape]

    @property
    def shape(self) -> Shape:
        return self.shapes[-1]

    def module(self, made: nn.Module) -> str:
        """Add a module, at the top or one level down; return its path."""
        inner = self.rng.random() < 0.3
        owner = self.network.block if inner else self.network
        name = f"{type(made).__name__.lower()}{len(self.shapes)}_{len(list(owner.children()))}"
        owner.add_module(name, made)
        return f"block.{name}" if inner else name

    def parameter(self, *shape: int) -> str:
        name = f"weight{len(self.shapes)}_{len(self.network._parameters)}"
        self.network.register_parameter(name, nn.Parameter(torch.ones(shape)))
        return name

    def add(self, step: Step, shape: Shape | None = None) -> None:
        self.network.steps.append(step)
        self.shapes.append(self.shape if shape is None else shape)

    def call(self, made: nn.Module, shape: Shape | None = None) -> None:
        """Call a new module on the last value."""
        path = self.module(made)
        self.add(lambda m, v: m.get_submodule(path)(v[-1]), shape)

    def apply(self, function: Callable[[Any], Any], shape: Shape | None = None) -> None:
        """Call a function on the last value."""
        self.add(lambda m, v: function(v[-1]), shape)

    def like(self) -> int:
        """Return the index of a value shaped as the last one, maybe of the last one itself."""
        same = [i for i, shape in enumerate(self.shapes) if shape == self.shape]
        return self.rng.choice(same)


# ---- blocks for images


def _relu(b: Builder) -> None:
    kind = b.rng.randrange(7)
    if kind < 2:
        b.call(nn.ReLU(inplace=False))
    else:
        functions = (F.relu, F.relu, torch.relu, lambda x: x.relu(), F.relu6)
        b.apply(functions[kind - 2])


def conv(b: Builder) -> None:
    n, c, h, w = b.shape
    k = b.rng.choice([1, 1, 3]) if min(h, w) > 2 else 1
    out, groups = b.rng.choice([2, 4]), b.rng.choice([1, 1, 2]) if c % 2 == 0 else 1
    padding = k // 2
    made = nn.Conv2d(c, out, k, 1, padding, groups=groups, bias=b.rng.random() < 0.8)
    b.call(made, (n, out, h, w))


def conv_bn(b: Builder) -> None:
    conv(b)
    b.call(nn.BatchNorm2d(b.shape[1]))


def conv_relu(b: Builder) -> None:
    conv(b)
    _relu(b)


def conv_bn_relu(b: Builder) -> None:
    conv_bn(b)
    _relu(b)


def batch_norm(b: Builder) -> None:
    b.call(nn.BatchNorm2d(b.shape[1]))
    if b.rng.random() < 0.5:
        _relu(b)


def conv_transpose(b: Builder) -> None:
    n, c, h, w = b.shape
    b.call(nn.ConvTranspose2d(c, 2, 2), (n, 2, h + 1, w + 1))


def conv_function(b: Builder) -> None:
    n, c, h, w = b.shape
    weight, bias = b.parameter(4, c, 1, 1), b.parameter(4) if b.rng.random() < 0.5 else None
    full = (1, 1), (0, 0), (1, 1), 1

    def step(m: Any, v: Any) -> Any:
        return F.conv2d(v[-1], getattr(m, weight), bias and getattr(m, bias), *full)

    b.add(step, (n, 4, h, w))
    if b.rng.random() < 0.5:
        _relu(b)


def shared(b: Builder) -> None:
    c = b.shape[1]
    path = b.module(nn.Conv2d(c, c, 1))
    b.add(lambda m, v: m.get_submodule(path)(v[-1]))
    if b.rng.random() < 0.5:
        _relu(b)
    b.add(lambda m, v: m.get_submodule(path)(v[-1]))


def pool(b: Builder) -> None:
    n, c, h, w = b.shape
    if min(h, w) < 2:
        b.call(nn.AdaptiveAvgPool2d(1), (n, c, 1, 1))
        return
    half = (n, c, h // 2, w // 2)
    b.rng.choice(
        [
            lambda: b.call(nn.MaxPool2d(2), half),
            lambda: b.call(nn.AvgPool2d(2), half),
            lambda: b.apply(lambda x: F.max_pool2d(x, 2), half),
            lambda: b.apply(lambda x: F.avg_pool2d(x, 2, 2), half),
            lambda: b.apply(lambda x: F.adaptive_avg_pool2d(x, (2, 1)), (n, c, 2, 1)),
            lambda: b.call(nn.AdaptiveAvgPool2d((1, 2)), (n, c, 1, 2)),
            lambda: b.apply(lambda x: x.mean((2, 3), keepdim=True), (n, c, 1, 1)),
        ]
    )()


def interpolate(b: Builder) -> None:
    n, c, h, w = b.shape
    b.apply(lambda x: F.interpolate(x, scale_factor=2.0), (n, c, 2 * h, 2 * w))


def pixels(b: Builder) -> None:
    n, c, h, w = b.shape
    if c % 4 == 0:
        b.apply(lambda x: F.pixel_shuffle(x, 2), (n, c // 4, 2 * h, 2 * w))


def instance_norm(b: Builder) -> None:
    if b.shape[2] * b.shape[3] > 1:
        b.call(nn.InstanceNorm2d(b.shape[1], affine=b.rng.random() < 0.5))


def chunk(b: Builder) -> None:
    n, c, *rest = b.shape
    if c % 2 == 0:
        step = b.rng.choice(
            [
                lambda x: operator.add(*(lambda p: (p[0], p[1]))(torch.chunk(x, 2, 1))),
                lambda x: x.split(c // 2, 1)[1],
                lambda x: x[:, : c // 2],
            ]
        )
        b.apply(step, (n, c // 2, *rest))


def cat(b: Builder) -> None:
    fits = [i for i, s in enumerate(b.shapes) if len(s) == len(b.shape) and s[2:] == b.shape[2:]]
    picked = [b.rng.choice(fits) for _ in range(b.rng.randint(1, 2))]
    channels = b.shape[1] + sum(b.shapes[i][1] for i in picked)
    if channels <= 16:
        b.add(
            lambda m, v: torch.cat([v[-1], *(v[i] for i in picked)], 1),
            (b.shape[0], channels, *b.shape[2:]),
        )


def permute(b: Builder) -> None:
    n, c, h, w = b.shape
    b.rng.choice(
        [
            lambda: b.apply(lambda x: x.permute(0, 1, 3, 2), (n, c, w, h)),
            lambda: b.apply(lambda x: torch.transpose(x, 2, 3), (n, c, w, h)),
            lambda: b.apply(lambda x: x.transpose(1, 2).contiguous(), (n, h, c, w)),
        ]
    )()


def reshape(b: Builder) -> None:
    n, c, h, w = b.shape
    b.rng.choice(
        [
            lambda: b.apply(lambda x: x.reshape(n, c, w, h), (n, c, w, h)),
            lambda: b.apply(lambda x: x.reshape(x.size(0), c, -1, 1), (n, c, h * w, 1)),
            lambda: b.apply(lambda x: x.flatten(2).unsqueeze(3), (n, c, h * w, 1)),
            lambda: b.apply(lambda x: x.unsqueeze(0).squeeze(0)),
        ]
    )()


def to_rows(b: Builder) -> None:
    n, c, h, w = b.shape
    flat = (n, c * h * w)
    if flat[1] > 150:
        b.call(nn.AdaptiveAvgPool2d(1), (n, c, 1, 1))
        flat = (n, c)
    b.rng.choice(
        [
            lambda: b.apply(lambda x: torch.flatten(x, 1), flat),
            lambda: b.call(nn.Flatten(), flat),
            lambda: b.apply(lambda x: x.reshape(n, -1), flat),
            lambda: b.apply(lambda x: x.contiguous().view(x.size(0), -1), flat),
        ]
    )()


# ---- blocks for rows


def linear(b: Builder) -> None:
    out = b.rng.choice([4, 6])
    b.call(nn.Linear(b.shape[-1], out, bias=b.rng.random() < 0.8), (*b.shape[:-1], out))


def linear_relu(b: Builder) -> None:
    linear(b)
    _relu(b)


def linear_bn(b: Builder) -> None:
    linear(b)
    b.call(nn.BatchNorm1d(b.shape[1]))
    if b.rng.random() < 0.5:
        _relu(b)


def linear_function(b: Builder) -> None:
    weight = b.parameter(4, b.shape[-1])
    bias = b.parameter(4) if b.rng.random() < 0.5 else None

    def step(m: Any, v: Any) -> Any:
        if bias is None:
            return F.linear(v[-1], getattr(m, weight))
        return F.linear(v[-1], getattr(m, weight), getattr(m, bias))

    b.add(step, (*b.shape[:-1], 4))
    if b.rng.random() < 0.5:
        _relu(b)


def matmul(b: Builder) -> None:
    n, _ = b.shape
    b.apply(lambda x: torch.matmul(x, x.transpose(0, 1)), (n, n))


def layer_norm(b: Builder) -> None:
    b.call(nn.LayerNorm(b.shape[-1]))


# ---- blocks for any shape


def add(b: Builder) -> None:
    i, function = b.like(), b.rng.choice([operator.add, torch.add, operator.mul, torch.mul])
    b.add(lambda m, v: function(v[-1], v[i]))
    if b.rng.random() < 0.4:
        _relu(b)


def scalar(b: Builder) -> None:
    function = b.rng.choice([operator.add, torch.add, operator.mul, torch.mul])
    number = b.rng.choice([2, 0.5, -1.25])
    b.apply(lambda x: function(x, number))
    if b.rng.random() < 0.3:
        _relu(b)


def float_functional(b: Builder) -> None:
    path, i = b.module(torch.ao.nn.quantized.FloatFunctional()), b.like()
    name = b.rng.choice(["add", "mul", "add_relu"])
    b.add(lambda m, v: getattr(m.get_submodule(path), name)(v[-1], v[i]))


def clamp(b: Builder) -> None:
    b.apply(
        b.rng.choice(
            [
                lambda x: torch.clamp(x, -1.0, 1.0),
                lambda x: x.clamp(min=-0.5),
                lambda x: F.hardtanh(x, -1.0, 1.0),
            ]
        )
    )


def activation(b: Builder) -> None:
    made = b.rng.choice(
        [
            *(nn.Hardswish, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Hardsigmoid),
            *(nn.Dropout, nn.Hardtanh, nn.Identity, nn.PReLU, lambda: nn.Softmax(1)),
        ]
    )
    b.call(made())


def activation_function(b: Builder) -> None:
    b.apply(
        b.rng.choice(
            [
                *(F.hardswish, F.elu, F.leaky_relu, torch.sigmoid, torch.tanh, F.hardsigmoid),
                *(lambda x: x.sigmoid(), lambda x: x.tanh(), lambda x: F.dropout(x, 0.2, False)),
            ]
        )
    )


def left_float(b: Builder) -> None:
    """Ops that no back-end, or nearly none, quantizes."""
    b.apply(
        b.rng.choice(
            [
                *(lambda x: torch.sub(x, 0.5), lambda x: x / 2.0, torch.abs, F.softsign),
                *(lambda x: torch.neg(x), lambda x: 1.0 - x, lambda x: x.max(x * 0.5)),
            ]
        )
    )


IMAGES = (
    *(conv, conv, conv_bn, conv_relu, conv_bn_relu, conv_bn_relu, batch_norm, conv_transpose),
    *(conv_function, shared, pool, pool, interpolate, pixels, instance_norm, chunk, cat, cat),
    *(permute, reshape, to_rows),
)
ROWS = (linear, linear, linear_relu, linear_relu, linear_bn, linear_function, matmul, cat, chunk)
ANY = (
    *(_relu, add, add, scalar, float_functional, clamp, activation, activation_function),
    *(left_float, layer_norm),
)


def model(rng: random.Random) -> tuple[Network, Shape]:
    """Return a network of 3 to 15 blocks and the shape of its input."""
    shape = (2, 4, 4, 4) if rng.random() < 0.7 else (3, 6)
    b = Builder(rng, shape)
    for _ in range(rng.randint(3, 15)):
        own = IMAGES if len(b.shape) == 4 else ROWS
        rng.choice((*own, *own, *ANY))(b)
        if b.shape[-1] * b.shape[-2] > 400 and len(b.shape) == 4:
            b.call(nn.AdaptiveAvgPool2d(2), (*b.shape[:2], 2, 2))
    if rng.random() < 0.2:
        b.network.also = rng.randrange(1, len(b.shapes))
    return b.network, shape


# ---- how it is quantized

BACKENDS: dict[str, Any] = {
    "native": get_native_backend_config,
    "fbgemm": get_fbgemm_backend_config,
    "x86": get_x86_backend_config,
    "qnnpack": get_qnnpack_backend_config,
    "onednn": get_onednn_backend_config,
    "executorch": get_executorch_backend_config,
    "tensorrt": get_tensorrt_backend_config,
}
KINDS = (nn.Conv2d, nn.Linear, nn.ReLU, F.relu, torch.add, operator.add, F.linear, F.conv2d)


def _change(rng: random.Random, mapping: QConfigMapping, network: Network, qat: bool) -> None:
    """Set an entry of a random level."""
    some = (
        [None, default_qat_qconfig]
        if qat
        else [*(None, None, default_qconfig, default_per_channel_qconfig, default_dynamic_qconfig)]
    )
    qconfig = rng.choice(some)
    paths = [path for path, _ in network.named_modules() if path]
    level = rng.randrange(5)
    if level == 0:
        mapping.set_object_type(rng.choice([*KINDS, "reshape", "relu", "clamp"]), qconfig)
    elif level == 1 and paths:
        mapping.set_module_name(rng.choice(paths), qconfig)
    elif level == 2:
        mapping.set_module_name_regex(
            rng.choice(["block.*", "conv.*_1", ".*linear", "re"]), qconfig
        )
    elif level == 3:
        order = rng.choice(["", "block"]), rng.choice(KINDS), rng.randrange(3)
        mapping.set_module_name_object_type_order(*order, qconfig)
    else:
        mapping.set_global(qconfig)


def case(seed: int) -> Case:
    """Return a random case."""
    rng = random.Random(seed)
    network, shape = model(rng)
    mode = rng.choice(["ptq", "ptq", "ptq", "qat"])
    backend = rng.choice([None, None, *BACKENDS])
    if mode == "qat":
        base = rng.choice([qconfigs.qat, qconfigs.qat_0, qconfigs.only(default_qat_qconfig)])
    elif backend == "tensorrt":
        base = qconfigs.symmetric
    elif backend == "qnnpack" and rng.random() < 0.5:
        base = qconfigs.qnnpack_symmetric
    else:
        base = rng.choice(
            [
                *(qconfigs.static, qconfigs.static, qconfigs.static, qconfigs.per_tensor),
                *(qconfigs.dynamic, qconfigs.only(float16_dynamic_qconfig)),
                qconfigs.static_float16,
            ]
        )
    changes = rng.choice([0, 0, 1, 2, 3])
    again = rng.random()

    def mapping() -> QConfigMapping:
        made, chooser = base(), random.Random(again)
        for _ in range(changes):
            _change(chooser, made, network, mode == "qat")
        return made

    indexes = rng.random()

    def custom() -> PrepareCustomConfig:
        made = PrepareCustomConfig()
        if indexes > 0.95:
            made.set_input_quantized_indexes([0])
        return made.set_output_quantized_indexes([0]) if indexes > 0.9 else made

    return Case(
        network,
        (shape,),
        mapping,
        mode=mode,  # type: ignore[arg-type]
        backend=BACKENDS.get(backend or ""),
        prepare_custom=custom if indexes > 0.9 else None,
        run_inputs=(quantized(*shape),) if indexes > 0.95 else None,
        steps=rng.randrange(2) if mode == "qat" else 0,
    )
