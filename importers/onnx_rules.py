"""Every ONNX operator that has a rule, by its name; the rules are in files by families."""

from __future__ import annotations

from refquant.importers.onnx_builder import Rule
from refquant.importers.onnx_elementwise import ELEMENTWISE
from refquant.importers.onnx_layers import LAYERS
from refquant.importers.onnx_movement import MOVEMENT
from refquant.importers.onnx_quantization import QUANTIZATION
from refquant.importers.onnx_reductions import REDUCTIONS
from refquant.importers.onnx_selection import SELECTION
from refquant.importers.onnx_sequences import SEQUENCES
from refquant.importers.onnx_signals import SIGNALS

RULES: dict[str, Rule] = {
    **ELEMENTWISE,
    **LAYERS,
    **MOVEMENT,
    **QUANTIZATION,
    **REDUCTIONS,
    **SELECTION,
    **SEQUENCES,
    **SIGNALS,
}

_RANDOM = "random numbers: nothing says which"
_TEXT = "text is not part of this importer"
_TRAINING = "training is not part of this importer"
# Why operators have no rule.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
            "RandomUniformLike",
        ),
        _RANDOM,
    ),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
        _TEXT,
    ),
    "ImageDecoder": "compressed images are not tensors",
}
REFUSED_DOMAINS: dict[str, str] = {
    "ai.onnx.ml": "classical machine learning is not part of this importer",
    "ai.onnx.preview.training": _TRAINING,
    "ai.onnx.training": _TRAINING,
}
