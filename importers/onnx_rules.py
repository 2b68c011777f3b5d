"""Every ONNX operator that has a rule, by its name; the rules are in files by families."""

from __future__ import annotations

from refquant.importers.onnx_builder import Rule
from refquant.importers.onnx_elementwise import ELEMENTWISE
from refquant.importers.onnx_layers import LAYERS
from refquant.importers.onnx_movement import MOVEMENT
from refquant.importers.onnx_quantization import QUANTIZATION
from refquant.importers.onnx_sequences import SEQUENCES

RULES: dict[str, Rule] = {
    **ELEMENTWISE,
    **LAYERS,
    **MOVEMENT,
    **QUANTIZATION,
    **SEQUENCES,
}
