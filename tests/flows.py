"""torch's quantization flows, with its warnings off and the fbgemm engine on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.ao.quantization import (
    QConfigMapping,
    default_dynamic_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    quantize_fx,
)


@contextmanager
def fbgemm() -> Iterator[None]:
    """Run torch quietly, with one thread, on fbgemm."""
    engine, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = engine
        torch.set_num_threads(threads)


def batches(shape: tuple[int, ...], count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def prepare(model: nn.Module, shape: tuple[int, ...], mapping: Any = None) -> nn.Module:
    with fbgemm():
        mapping = mapping or get_default_qconfig_mapping("fbgemm")
        prepared = quantize_fx.prepare_fx(
            copy.deepcopy(model).eval(), mapping, (torch.zeros(shape),)
        )
        for batch in batches(shape):
            prepared(batch)
    return prepared


def prepare_qat(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    with fbgemm():
        mapping = get_default_qat_qconfig_mapping("fbgemm")
        prepared = quantize_fx.prepare_qat_fx(
            copy.deepcopy(model).train(), mapping, (torch.zeros(shape),)
        )
        for batch in batches(shape):
            prepared(batch)
    return prepared.eval()


def convert(prepared: nn.Module, form: str = "lowered") -> nn.Module:
    how = {
        "lowered": quantize_fx.convert_fx,
        "reference": quantize_fx.convert_to_reference_fx,
        "decomposed": quantize_fx._convert_to_reference_decomposed_fx,
    }[form]
    with fbgemm():
        return how(copy.deepcopy(prepared))


def dynamic(model: nn.Module, shape: tuple[int, ...], form: str = "lowered") -> nn.Module:
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    return convert(prepare(model, shape, mapping), form)
