"""The side of torch: its tensors and ours, tracing, running and loading its models.

The only file that imports torch, and only when one of its functions is called.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.qtensor import Array, QTensor, Tensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import TORCH_DTYPES, DType
from refquant.kernels.layout import is_channels_last

TORCH_VERSION = "2.13.0"


def require_torch() -> Any:
    """Import torch and its quantization, and insist on the version whose bits are meant."""
    try:
        import torch
        import torch.ao.quantization.fx._decomposed
        import torch.ao.quantization.fx.tracer
        import torch.fx
    except ImportError:
        raise UnsupportedError(
            f"a torch module needs torch=={TORCH_VERSION}; pip install 'refquant[oracle]'"
        ) from None
    if torch.__version__.partition("+")[0] != TORCH_VERSION:
        raise UnsupportedError(
            f"torch {torch.__version__} is installed; refquant reproduces torch {TORCH_VERSION}"
        )
    return torch


def to_tensor(tensor: Any) -> Tensor:
    """Return a torch tensor as an array or QTensor with the same strides."""
    torch = require_torch()
    if tensor.layout == torch._mkldnn:  # packed by oneDNN
        tensor = tensor.to_dense()
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        layout = str(tensor.layout).removeprefix("torch.")
        raise VerifyError(f"expected a dense tensor on the CPU, got {layout} on {tensor.device}")
    tensor = tensor.detach()
    if not tensor.is_quantized:
        dtype = TORCH_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is not None and dtype.storage.type.__module__ != "numpy":  # not known to NumPy
            bits = torch.uint16 if dtype.storage.itemsize == 2 else torch.uint8
            return tensor.view(bits).numpy().view(dtype.storage)  # type: ignore[no-any-return]
        return tensor.numpy()  # type: ignore[no-any-return]
    dtype = TORCH_DTYPES[str(tensor.dtype).removeprefix("torch.")]
    if dtype.name != "quint4x2":  # int_repr() would lose the strides of a view
        plain = torch.empty(0, dtype=getattr(torch, dtype.storage.name))
        place = tensor.storage_offset(), tensor.size(), tensor.stride()
        integers: Array = plain.set_(tensor.untyped_storage(), *place).numpy()
    else:
        packed = tensor.int_repr().numpy()
        integers = QTensor.from_packed(packed, tuple(tensor.shape), 1.0, 0).int_repr
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return QTensor(integers, tensor.q_scale(), tensor.q_zero_point(), None, dtype)
    return QTensor(
        integers,
        tensor.q_per_channel_scales().numpy(),
        tensor.q_per_channel_zero_points().numpy(),
        tensor.q_per_channel_axis(),
        dtype,
    )


def is_graph_module(model: Any) -> bool:
    """Whether a torch module is traced already."""
    return isinstance(model, require_torch().fx.GraphModule)


def call_torch(kind: str, target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute a function or method of constants with torch.

    Parameters
    ----------
    kind : str
        ``call_function`` or ``call_method``.
    target : str
        Name of the function, or of the method of the first argument.
    """
    torch = require_torch()

    def restore(value: Any) -> Any:
        if isinstance(value, DType):
            return getattr(torch, value.name)
        if isinstance(value, np.ndarray | QTensor):
            return to_torch(value)
        if isinstance(value, tuple | list):
            return type(value)(map(restore, value))
        return {k: restore(v) for k, v in value.items()} if isinstance(value, dict) else value

    args, kwargs = restore(list(args)), restore(dict(kwargs))
    if kind == "call_method":
        result = getattr(args[0], target)(*args[1:], **kwargs)
    else:
        module, _, name = target.rpartition(".")
        owner = torch if module == "torch" else importlib.import_module(module)
        result = getattr(owner, name)(*args, **kwargs)
    return to_tensor(result.clone()) if isinstance(result, torch.Tensor) else result


def as_arrays(example_inputs: Any) -> list[Tensor]:
    """Return positional inputs as arrays and QTensors."""
    if is_tensor(example_inputs) or isinstance(example_inputs, np.ndarray | QTensor):
        example_inputs = (example_inputs,)
    if not isinstance(example_inputs, Sequence) or not example_inputs:
        raise VerifyError(
            "example_inputs is missing; give a tuple of tensors or arrays, because shapes are "
            "not written in a torch module"
        )
    arrays = [
        to_tensor(value)
        if is_tensor(value)
        else value
        if isinstance(value, QTensor)
        else np.asarray(value)
        for value in example_inputs
    ]
    for array in arrays:
        dtype = type_of(array).dtype
        if dtype.name not in TORCH_DTYPES:
            accepted = ", ".join(TORCH_DTYPES)
            raise VerifyError(f"array dtype {dtype} is not supported; use {accepted}")
    return arrays


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_torch(tensor: Tensor) -> Any:
    """Return an array or QTensor as a torch tensor with the same strides."""
    torch = require_torch()
    if not isinstance(tensor, QTensor):
        if tensor.dtype.type.__module__ == "numpy":
            return torch.as_tensor(tensor)
        bits = tensor.view(np.uint16 if tensor.itemsize == 2 else np.uint8)
        return torch.as_tensor(bits).view(getattr(torch, tensor.dtype.name))
    x = tensor.int_repr
    if tensor.axis is not None:
        made = torch._make_per_channel_quantized_tensor(
            torch.as_tensor(x),
            torch.as_tensor(np.asarray(tensor.scale)),
            torch.as_tensor(np.asarray(tensor.zero_point)),
            tensor.axis,
        )
        if is_channels_last(x):  # making the tensor loses its memory format
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            made = made.contiguous(memory_format=formats[x.ndim])
        return made
    # The memory first: torch gives a made tensor a memory format of its own choice.
    steps = [stride // x.itemsize for stride in x.strides]
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, steps, strict=True))
    memory = np.lib.stride_tricks.as_strided(x, (extent if x.size else 0,), (x.itemsize,))
    made = torch._make_per_tensor_quantized_tensor(
        torch.as_tensor(memory), float(tensor.scale), int(tensor.zero_point)
    )
    return made.as_strided(x.shape, steps)


def to_torch_state_dict(state_dict: Mapping[str, Array]) -> Any:
    """Return an observer's or fake-quant's ``state_dict`` as what torch's twin loads.

    The version number goes along: without it torch replaces eps by its default.

    Parameters
    ----------
    state_dict : mapping of str to arrays
        From ``state_dict()``, or from ``get_observer_state_dict``.

    Returns
    -------
    collections.OrderedDict of torch tensors
    """
    tensors = OrderedDict((key, to_torch(np.array(value))) for key, value in state_dict.items())
    tensors._metadata = getattr(state_dict, "_metadata", {})  # type: ignore[attr-defined]
    return tensors


def _trace(module: Any) -> Any:
    from torch.ao.quantization.fx.tracer import QuantizationTracer

    return QuantizationTracer([], []).trace(module)


def record_fx(model: Any, inputs: Sequence[Any], target: Target) -> dict[str, Tensor]:
    """Run a torch model and return the value of every node by its name.

    The parts of a tuple are named ``node.0``, ``node.1``. torch's engine and thread count are
    set to the target's for the run. The run is on a copy, because packed weights keep the engine
    under which they were packed (by default x86, whose convolutions are onednn's), and copying
    packs them again.
    """
    torch = require_torch()
    recorded: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):  # type: ignore[name-defined]
        def run_node(self, n: Any) -> Any:
            result = super().run_node(n)
            if n.op not in ("output", "get_attr"):
                note(n.name, result)
            return result

    def note(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            recorded[name] = to_tensor(copy.deepcopy(value.detach()))  # clone() loses strides
        elif isinstance(value, tuple | list):
            for i, part in enumerate(value):
                note(f"{name}.{i}", part)

    threads, engine = torch.get_num_threads(), torch.backends.quantized.engine
    try:
        torch.set_num_threads(target.threads)
        torch.backends.quantized.engine = str(target.engine)
        module = copy.deepcopy(model)
        if not is_graph_module(module):
            module = torch.fx.GraphModule(module, _trace(module))
        with torch.no_grad():
            Recorder(module).run(*(to_torch(array) for array in as_arrays(inputs)))
    finally:
        torch.set_num_threads(threads)
        torch.backends.quantized.engine = engine
    return recorded


def load_saved(path: str) -> Any:
    """Load a module that ``torch.save`` wrote.

    Raises
    ------
    VerifyError
        If the file does not hold a torch module.
    """
    torch = require_torch()
    try:
        module = torch.load(path, weights_only=False)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise VerifyError(f"{path}: not a module saved by torch ({reason})") from None
    if not isinstance(module, torch.nn.Module):
        raise VerifyError(f"{path}: holds {type(module).__name__}, expected a GraphModule")
    return module
