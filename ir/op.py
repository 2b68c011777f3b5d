"""What an operation is: formula, shape rule, kernel per engine, and cases, held together."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.prepared import Prepare
from refquant.ir.qtensor import Tensor
from refquant.ir.target import ONNX_ENGINES, TORCH_ENGINES, Engine, Target
from refquant.ir.types import TensorType

EVERY_ENGINE = tuple(Engine)


class Case(NamedTuple):
    """One hand-written example: documentation, unit test and golden vector at once.

    ``expected`` is compared with the result, or with its ``int_repr`` where that is quantized;
    a tuple is compared element by element with a tuple of results. It holds for ``engines``, or
    for all that the op has a kernel for.
    """

    name: str
    operands: tuple[Any, ...]
    attributes: Mapping[str, Any]
    expected: Any
    why: str
    engines: tuple[Engine, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation of the IR.

    Parameters
    ----------
    name
        PyTorch's qualified name, ``namespace::op``.
    reference
        Slow, obvious NumPy, called as ``reference(*operands, **attributes)`` with arrays and
        ``QTensor`` as operands; its docstring is the op's documentation. Operand order and
        attribute names are those of torch's schema. If its result depends on the machine, it
        has a keyword ``target``.
    infer
        Called like ``reference`` with ``TensorType`` operands; makes every check and returns
        the type (or the tuple of types) of the result.
    kernels
        The fast function of each engine, called like ``reference``. Engines with equal numerics
        share one function; where plain NumPy is already fast it is the reference itself.
    pack
        Rearranges operand ``weight``, where it is a constant, once into the layout the kernel
        wants: ``pack(weight, **attributes)``.
    prepare
        Binds constants and shapes ahead of a run; see :mod:`refquant.ir.prepared`. None where
        it has nothing to gain.
    limits
        Of an op that only limits the integers of its operand: ``limits(type, target,
        **attributes)`` returns the lowest and the highest, or None where it does more.
    keeps_channels_last
        Whether a channels-last operand 0 surely gives a dense channels-last result.
    source
        Where upstream computes it: ``repository/path::symbol``, one a line.
    cases
        Hand-written examples, the awkward values first.
    weight
        Position of the operand that is packed.
    """

    name: str
    reference: Callable[..., Any]
    infer: Callable[..., TensorType | tuple[TensorType, ...]]
    kernels: Mapping[Engine, Callable[..., Any]]
    source: tuple[str, ...]
    cases: tuple[Case, ...]
    pack: Callable[..., Tensor] | None = None
    prepare: Prepare | None = None
    limits: Callable[..., tuple[int, int] | None] | None = None
    keeps_channels_last: bool = False
    weight: int = 1

    @property
    def doc(self) -> str:
        """The op's documentation."""
        return inspect.getdoc(self.reference) or ""

    def kernel(self, engine: Engine) -> Callable[..., Any]:
        """Return the fast function for ``engine``.

        ONNX leaves float operators open: for its engines they are torch's, where those of all
        its engines agree.

        Raises
        ------
        UnsupportedError
            If the engine's numerics of this op are not known.
        """
        if engine in self.kernels:
            return self.kernels[engine]
        if engine in ONNX_ENGINES and self.name.startswith("aten::"):
            shared = {self.kernels.get(e) for e in TORCH_ENGINES}
            if len(shared) == 1 and "quantize" not in self.name and None not in shared:
                return self.kernels[Engine.FBGEMM]
        has = ", ".join(sorted(self.kernels))
        raise UnsupportedError(f"{self.name}: no kernel for engine {engine!s}; it has {has}")

    def bind(self, target: Target, *, fast: bool) -> Callable[..., Any]:
        """Return the kernel or the reference for a machine, ready to be called.

        Raises
        ------
        UnsupportedError
            If the engine's numerics of this op are not known.
        """
        kernel = self.kernel(target.engine)
        function = kernel if fast else self.reference
        if "target" not in inspect.signature(function).parameters:
            return function

        def on_target(*operands: Any, **attributes: Any) -> Any:
            return function(*operands, **attributes, target=target)

        return on_target


class Registry(Mapping[str, Op]):
    """All ops by name; the file of an op is imported when the op is first asked for."""

    def __init__(self) -> None:
        self._module_of: dict[str, str] = {}
        self._ops: dict[str, Op] = {}

    def declare(self, package: str, names_by_file: Mapping[str, tuple[str, ...]]) -> None:
        """Tell which file of ``package`` defines which ops."""
        for file, names in names_by_file.items():
            for name in names:
                self._module_of[name] = f"{package}.{file}"

    def __getitem__(self, name: str) -> Op:
        if name not in self._ops:
            module = importlib.import_module(self._module_of[name])
            self._ops.update({op.name: op for op in module.OPS})
        return self._ops[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._module_of)

    def __len__(self) -> int:
        return len(self._module_of)

    def __contains__(self, name: object) -> bool:
        return name in self._module_of

    def lookup(self, name: str, where: str) -> Op:
        """Return an op, or say which node asked for an unknown one."""
        if name not in self._module_of:
            raise VerifyError(f"{where}: unknown op {name!r}")
        return self[name]


OPS = Registry()
