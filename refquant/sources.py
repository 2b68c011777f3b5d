"""Finding models on the command line: a ``.rq`` file, a saved GraphModule, or a factory."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.graph import Graph
from refquant.ir.qtensor import Tensor


class Source(NamedTuple):
    """A torch model with inputs it can run on."""

    model: Any
    inputs: tuple[Any, ...]


def read_factory(spec: str) -> Source:
    """Call ``path/module.py:factory``, which returns ``(model, example_inputs)``.

    Raises
    ------
    VerifyError
        If there is no such file or function, it fails, or returns something else.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise VerifyError(f"{spec}: no file {file or spec!r}; expected path/module.py:factory")
    description = importlib.util.spec_from_file_location(path.stem, path)
    if description is None or description.loader is None:
        raise VerifyError(f"{spec}: {file} is not a Python file")
    module = importlib.util.module_from_spec(description)
    sys.modules[path.stem] = module
    try:
        description.loader.exec_module(module)
        factory = getattr(module, name)
        result = factory()
    except RefquantError:
        raise
    except Exception as error:
        raise VerifyError(f"{spec}: {type(error).__name__}: {_first_line(error)}") from None
    if not isinstance(result, tuple) or len(result) != 2:
        raise VerifyError(
            f"{spec}: the factory must return (model, example_inputs), got {type(result).__name__}"
        )
    model, inputs = result
    return Source(model, tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,))


def read_saved(path: str, shapes: list[str]) -> Source:
    """Load a GraphModule that ``torch.save`` wrote; its pickle can run code, so trust it.

    Raises
    ------
    VerifyError
        If the file does not hold a module or no shape is given.
    """
    from refquant.importers.fx_torch import load_saved

    if not shapes:
        raise VerifyError(
            f"{path}: give --shape for each input (such as 1,3,224,224): "
            "a saved GraphModule does not hold shapes"
        )
    examples = tuple(np.zeros(parse_shape(shape), np.float32) for shape in shapes)
    return Source(load_saved(path), examples)


def read_onnx(path: str, shapes: list[str], target: str) -> Graph:
    """Import an ONNX file; shapes are those of its inputs, in order.

    Raises
    ------
    VerifyError
        If the file is no ONNX model, or there are more shapes than inputs.
    """
    from refquant.importers.onnx import from_onnx
    from refquant.importers.onnx_file import read

    model = read(path)
    names = [x.name for x in model.graph.inputs if x.name not in model.graph.constants]
    if len(shapes) > len(names):
        raise VerifyError(f"{path}: {len(shapes)} shapes for {len(names)} inputs")
    given = {name: parse_shape(shape) for name, shape in zip(names, shapes, strict=False)}
    return from_onnx(path, shapes=given, target=target)


def read_source(spec: str, shapes: list[str]) -> Source:
    """Read a factory or a saved GraphModule, by its form."""
    return read_factory(spec) if ":" in Path(spec).name else read_saved(spec, shapes)


def parse_shape(text: str) -> tuple[int, ...]:
    """Return ``(1, 3, 224, 224)`` for ``1,3,224,224``."""
    parts = text.replace("x", ",").split(",")
    if not all(part.isdecimal() for part in parts):
        raise VerifyError(f"shape: expected whole numbers such as 1,3,224,224, got {text!r}")
    return tuple(map(int, parts))


def read_inputs(files: list[str], graph: Graph, batch: int) -> tuple[Tensor, ...]:
    """Load ``.npy`` inputs, or draw seeded normal numbers where none are given."""
    if files:
        return tuple(_load_array(file) for file in files)
    generator = np.random.default_rng(0)
    arrays: list[Tensor] = []
    for value in graph.inputs:
        shape = tuple(
            s if isinstance(s, int) else s.bind({s.symbol: batch}) for s in value.type.shape
        )
        if not value.type.dtype.is_floating_point:
            raise VerifyError(f"input {value.name} is {value.type.dtype}; give a .npy file for it")
        arrays.append(generator.standard_normal(shape).astype(value.type.dtype.storage))
    return tuple(arrays)


def _load_array(file: str) -> Tensor:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise VerifyError(f"{file}: not a .npy array ({_first_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise VerifyError(f"{file}: expected one .npy array")
    return array


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
