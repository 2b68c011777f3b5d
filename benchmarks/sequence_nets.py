"""A BERT-like encoder and an LSTM in torch.nn, quantized dynamically, with seeded weights."""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic
from torch.nn import functional as F


class Layer(nn.Module):
    """Self-attention and two linears, each around a shortcut and before a layer norm."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.project = nn.Linear(hidden, hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.expand = nn.Linear(hidden, 4 * hidden)
        self.contract = nn.Linear(4 * hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, self.depth)).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the hidden states after this layer."""
        query, key = self._split(self.query(x)), self._split(self.key(x))
        weights = torch.softmax(query @ key.transpose(-2, -1) / math.sqrt(self.depth), -1)
        seen = (weights @ self._split(self.value(x))).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.project(seen))
        return self.norm2(x + self.contract(F.gelu(self.expand(x))))


def encoder(layers: int = 2, hidden: int = 768) -> nn.Module:
    """Return a float encoder."""
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(hidden, hidden // 64) for _ in range(layers))).eval()


class Recurrent(nn.Module):
    """An LSTM, and a linear on what it says at each step."""

    def __init__(self, inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, layers)
        self.linear = nn.Linear(hidden, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 256 numbers for each step."""
        return self.linear(self.lstm(x)[0])


def lstm(inputs: int = 256, hidden: int = 512, layers: int = 2) -> nn.Module:
    """Return a float LSTM."""
    torch.manual_seed(0)
    return Recurrent(inputs, hidden, layers).eval()


def quantized_encoder(
    tokens: int = 128, engine: str = "fbgemm"
) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return the encoder with dynamic linears, and one sequence."""
    return _quantized(encoder(), torch.randn(1, tokens, 768), engine)


def quantized_lstm(
    steps: int = 32, engine: str = "fbgemm"
) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return the dynamic LSTM, and one sequence."""
    return _quantized(lstm(), torch.randn(steps, 1, 256), engine)


def _quantized(
    model: nn.Module, example: torch.Tensor, engine: str
) -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = dict.fromkeys((nn.Linear, nn.LSTM), default_dynamic_qconfig)
        return quantize_dynamic(model, kinds), (example,)
