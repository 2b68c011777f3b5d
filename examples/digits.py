"""Four small networks for handwritten digits, quantized by torch for fbgemm.

Each factory returns the model that torch converted and the 450 test images. The weights were
trained on scikit-learn's digits; see ``examples/data/README.md``.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

DATA = Path(__file__).parent / "data"


class Residual(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(channels)
        self.c2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(x + f(x))."""
        y = F.relu(self.b1(self.c1(x)))
        return F.relu(x + self.b2(self.c2(y)))


class Cnn(nn.Module):
    """Stem, depthwise and residual branches, concatenation, pools, two linear layers."""

    def __init__(self, relu6: bool) -> None:
        super().__init__()
        c = 16
        self.stem = nn.Sequential(
            nn.Conv2d(1, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()
        )
        self.dw = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU6() if relu6 else nn.ReLU(),
        )
        self.res = Residual(c)
        self.pool = nn.MaxPool2d(2)
        self.l = nn.Conv2d(2 * c, 32, 1)
        self.hs = nn.Hardswish()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.f1 = nn.Linear(32, 32)
        self.f2 = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 10 logits for each image."""
        x = self.stem(x)
        x = self.pool(torch.cat([self.res(x), self.dw(x)], 1))
        x = torch.flatten(self.gap(self.hs(self.l(x))), 1)
        return self.f2(F.relu(self.f1(x)))


class Mlp(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 64)
        self.b = nn.Linear(64, 64)
        self.c = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 10 logits for each image."""
        return self.c(F.relu(self.b(F.relu(self.a(torch.flatten(x, 1))))))


class Lstm(nn.Module):
    """The rows of an image one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.LSTM(8, 32, batch_first=True)
        self.o = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 10 logits for each image."""
        y, _ = self.l(x.squeeze(1))
        return self.o(y[:, -1])


def images(part: str = "Xt") -> torch.Tensor:
    """Return the test images ("Xt") or the training images ("X") in 0..1."""
    data = np.load(DATA / "digits_data.npz")
    return torch.from_numpy(data[part].astype(np.float32) / data["scale"])


def labels() -> np.ndarray:
    """Return the digits of the test images."""
    return np.load(DATA / "digits_data.npz")["yt"]


def trained(name: str) -> nn.Module:
    """Return one of the float networks with its trained weights."""
    model = {
        "cnn": lambda: Cnn(True),
        "cnnr": lambda: Cnn(False),
        "mlp": Mlp,
        "lstm": Lstm,
    }[name]()
    arrays = np.load(DATA / f"digits_{name}_float.npz")
    state = {key[2:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("p:")}
    model.load_state_dict(state)
    return model.eval()


def quantized(name: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Calibrate on the training images and convert, as a user of torch would.

    The engine matters at conversion: packed weights belong to the engine they were packed under.
    """
    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = (images(),)
        prepared = prepare_fx(trained(name), get_default_qconfig_mapping("fbgemm"), example)
        prepared(images("X"))
        return convert_fx(prepared), example


def cnn() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """ReLU6 in the depthwise branch."""
    return quantized("cnn")


def cnnr() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """ReLU in the depthwise branch."""
    return quantized("cnnr")


def mlp() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Linear layers only."""
    return quantized("mlp")
