"""The digits networks quantized by onnxruntime, in every way it has."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

DATA = Path(__file__).parents[2] / "examples" / "data"
NETWORKS = ("cnn", "mlp", "lstm")
FORMATS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}
TYPES = {
    "u8s8": (QuantType.QUInt8, QuantType.QInt8),
    "s8s8": (QuantType.QInt8, QuantType.QInt8),
    "u8u8": (QuantType.QUInt8, QuantType.QUInt8),
}


class Way(NamedTuple):
    """One way to quantize a network."""

    network: str
    format: str
    types: str
    per_channel: bool

    def __str__(self) -> str:
        return "-".join([*self[:3], "channel" if self.per_channel else "tensor"])


WAYS = [
    Way(network, form, types, per_channel)
    for network in NETWORKS
    for form in (*FORMATS, "dynamic")
    for types in TYPES
    for per_channel in (False, True)
    if form != "dynamic" or types != "s8s8"
]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: Any) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter({name: images[i : i + 64]} for i in (0, 64))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def images() -> dict[str, Any]:
    """Return the digits as floats: ``X`` to calibrate, ``Xt`` to test."""
    data = np.load(DATA / "digits_data.npz")
    return {name: data[name].astype(np.float32) / data["scale"] for name in ("X", "Xt")}


def quantized(way: Way, folder: Path) -> Path:
    """Quantize a network with onnxruntime; return the file."""
    # A copy: onnxruntime writes beside the file it quantizes.
    source = Path(shutil.copy(DATA / f"digits_{way.network}.onnx", folder))
    made = folder / f"{way}.onnx"
    activations, weights = TYPES[way.types]
    logging.getLogger().setLevel(logging.ERROR)  # it advises to preprocess
    if way.format == "dynamic":
        quantize_dynamic(source, made, per_channel=way.per_channel, weight_type=weights)
        return made
    name = onnx.load(source).graph.input[0].name
    quantize_static(
        source,
        made,
        _Images(name, images()["X"]),
        quant_format=FORMATS[way.format],
        activation_type=activations,
        weight_type=weights,
        per_channel=way.per_channel,
    )
    return made
