"""ResNet-18, ResNet-50 and MobileNetV2 in torch.nn, with random but not degenerate weights.

The weights are seeded; the batch-norm statistics are estimated on random images, so that every
layer's activations have a spread and the quantized network uses its range.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(shortcut + f(x))."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(shortcut + f(x))."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A residual network for 1,000 classes."""

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, stages = 64, []
        for stage, count in enumerate(layers):
            width = 64 << stage
            blocks = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(block(inputs, width, stride))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1,000 logits for each image."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.stages(x)), 1))


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [] if expand == 1 else [_conv_bn_relu6(inputs, hidden, 1, 1, 1)]
        layers.append(_conv_bn_relu6(hidden, hidden, 3, stride, hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return f(x), plus x where the shapes agree."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Inverted residuals for 1,000 classes."""

    SETTINGS = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        layers = [_conv_bn_relu6(3, 32, 3, 2, 1)]
        inputs = 32
        for expand, outputs, count, stride in self.SETTINGS:
            for index in range(count):
                step = 1 if index else stride
                layers.append(InvertedResidual(inputs, outputs, step, expand))
                inputs = outputs
        layers.append(_conv_bn_relu6(inputs, 1280, 1, 1, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1,000 logits for each image."""
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        return self.classifier(self.dropout(x))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(BasicBlock, (2, 2, 2, 2)),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
    "mobilenet_v2": MobileNetV2,
}


def float_net(name: str, size: int = 224, seed: int = 0) -> nn.Module:
    """Return a float network in evaluation mode whose batch norms saw random images."""
    torch.manual_seed(seed)
    model = NETS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, size, size))
    return model.eval()


def quantized(
    model: nn.Module, example: torch.Tensor, engine: str = "fbgemm"
) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return a float network of images calibrated and converted by torch, and its example."""
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(model, get_default_qconfig_mapping(engine), (example,))
        for _ in range(2):
            prepared(torch.randn(2, *example.shape[1:]))
        return convert_fx(prepared), (example,)


def quantized_net(
    name: str, size: int = 224, engine: str = "fbgemm", seed: int = 0
) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return a network calibrated and converted by torch, and one image."""
    example = torch.randn(1, 3, size, size)
    return quantized(float_net(name, size, seed), example, engine)


def resnet18() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return ResNet-18 for ``refquant compare``."""
    return quantized_net("resnet18")


def resnet50() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return ResNet-50 for ``refquant compare``."""
    return quantized_net("resnet50")


def mobilenet_v2() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return MobileNetV2 for ``refquant compare``."""
    return quantized_net("mobilenet_v2")
