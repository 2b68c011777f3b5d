"""Rules of the quantization operators: each is an op of its own, with ONNX's attributes."""

from __future__ import annotations

from refquant.importers.onnx_builder import Rule

QUANTIZATION: dict[str, Rule] = {}
