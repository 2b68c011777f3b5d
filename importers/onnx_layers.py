"""Rules of layers: products, convolutions, pools, norms and recurrences."""

from __future__ import annotations

from refquant.importers.onnx_builder import Rule

LAYERS: dict[str, Rule] = {}
