"""Lowering: reference patterns become the quantized modules and functions of fbgemm."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from refquant.defects import reproduce
from refquant.fx import lower_tables as tables
from refquant.fx.fold import fold_weights
from refquant.fx.quantized_modules import from_reference
from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Call, Program
from refquant.ir.types import float16, qint8, quint8

_QUANTIZE = "torch.quantize_per_tensor"
_QUANTIZE_BY_CHANNEL = "torch.quantize_per_channel"
_QUANTIZE_DYNAMIC = "torch.quantize_per_tensor_dynamic"


def lower(
    program: Program,
    node_name_to_qconfig: Mapping[str, Any],
    keep_original_weights: bool = False,
) -> None:
    """Lower a reference program, in place.

    The passes are those of torch, in its order, and names and order of the calls are torch's.

    Parameters
    ----------
    program : Program
        Converted to a reference model.
    node_name_to_qconfig : mapping of str to QConfig or None
        A weighted or binary call whose name stands there with None stays as it is.
    keep_original_weights : bool
        Note what was packed, see :func:`~refquant.fx.fold.fold_weights`.

    Raises
    ------
    VerifyError
        Where torch cannot convert the model either.
    """
    job = _Lowering(program, node_name_to_qconfig)
    for lowering_pass in (
        *(job.static_modules, job.static_modules_with_two_inputs, job.dynamic_modules),
        *(job.weight_only_modules, job.static_functions, job.dynamic_functions),
        *(job.binary, job.shapes, job.special),
    ):
        job.modules = dict(program.root.named_modules(shared=True))
        lowering_pass()
    program.eliminate_dead_code()
    fold_weights(program, keep_original_weights)
    program.eliminate_dead_code()


class _Match(NamedTuple):
    """dequantize - op - relu, if any - quantize."""

    quantize: Call
    relu: Call | None
    op: Call


class _Lowering:
    """The passes; each sees the modules as they were before it, as torch's do."""

    def __init__(self, program: Program, qconfigs: Mapping[str, Any]) -> None:
        self.program, self.qconfigs = program, qconfigs
        self.modules: dict[str, Any] = {}

    # ---- matching

    def kind(self, call: Any) -> str:
        """Return the class of a called module, or the name of a function or method."""
        if not isinstance(call, Call):
            return ""
        if call.kind == "call_module":
            return str(getattr(self.modules.get(call.target), "kind", ""))
        return call.target if call.kind in ("call_function", "call_method") else ""

    def skipped(self, call: Call) -> bool:
        """Whether the QConfig says not to quantize a call."""
        return call.name in self.qconfigs and self.qconfigs[call.name] is None

    def match(self, call: Call, kinds: Collection[str]) -> _Match | None:
        """Match a quantize, perhaps a relu before it, and an op before that."""
        if call.kind != "call_function" or call.target != _QUANTIZE:
            return None
        op, relu = _tensor(call, 0), None
        is_relu = op.kind == "call_function" and op.target in tables.RELU_FUNCTIONS
        if is_relu or self.kind(op) == tables.RELU_MODULE:
            op, relu = _tensor(op, 0), op
        if self.skipped(op) or self.kind(op) not in kinds:
            return None
        return _Match(call, relu, op)

    def match_dequantized(
        self, call: Call, kinds: Collection[str], arguments: tuple[int, ...]
    ) -> _Match | None:
        """Match as :meth:`match` where the tensors among some arguments are dequantized."""
        found = self.match(call, kinds)
        if found is None:
            return None
        given = [_argument(found.op, i) for i in arguments]
        tensors = [arg for arg in given if isinstance(arg, Call)]
        return found if tensors and all(map(_is_dequantize, tensors)) else None

    # ---- modules

    def replace(self, call: Call, kind: str, quantize: Call | None = None) -> None:
        """Put the lowered module in the place of a reference module."""
        output = [] if quantize is None else self.qparams(quantize)
        try:
            made = from_reference(kind, self.modules[call.target], *output)
        except RefquantError as error:
            raise type(error)(f"{call.target}: {error}") from None
        parent, _, name = call.target.rpartition(".")
        owner: Module = self.modules[parent]
        owner.parts[name] = made

    def qparams(self, quantize: Call) -> list[Any]:
        """Return the scale and the zero point of a quantize, which the model holds."""
        for argument in quantize.args[1:3]:
            if not isinstance(argument, Call):
                raise VerifyError(
                    f"{quantize.name}: scale and zero point must be constants of the model, "
                    f"got {argument!r}"
                )
        return [self.program.root.get(argument.target) for argument in quantize.args[1:3]]

    def remove_quantize(self, quantize: Call, op: Call) -> None:
        """Remove a quantize and its constants; an op gives the quantized value itself."""
        _, scale, zero_point, _ = quantize.args
        quantize.replace_all_uses_with(op)
        for call in (quantize, scale, zero_point):
            self.program.erase(call)

    def static_modules(self) -> None:
        """Dequantize - reference module - quantize: nnq and nniq modules."""
        kinds = {*tables.STATIC, *tables.STATIC_FUSED}
        for call in _calls(self.program):
            found = self.match_dequantized(call, kinds, (0,))
            if found is None:
                continue
            quantize, _, op = found
            kind = self.kind(op)
            if kind in tables.STATIC_FUSED:
                inner, target = tables.STATIC_FUSED[kind]
                if self.modules[op.target][0].kind != inner:
                    continue
            else:
                target = tables.STATIC[kind]
            self.replace(op, target, quantize)
            if len(op.args) != 1:
                raise VerifyError(f"{op.name}: expected one argument, got {len(op.args)}")
            op.replace_input(op.args[0], op.args[0].args[0])
            self.remove_quantize(quantize, op)

    def static_modules_with_two_inputs(self) -> None:
        """Two times dequantize - fused convolution and sum - quantize: nniq modules."""
        for call in _calls(self.program):
            if call.kind != "call_function" or call.target != _QUANTIZE:
                continue
            op = _tensor(call, 0)
            kind = self.kind(op)
            if self.skipped(op) or kind not in tables.STATIC_FUSED_TWO_INPUTS:
                continue
            if len(op.args) != 2 or not all(map(_is_dequantize, op.args)):
                continue
            inner, target = tables.STATIC_FUSED_TWO_INPUTS[kind]
            if self.modules[op.target][0].kind != inner:
                continue
            self.replace(op, target, call)
            for source in op.args:
                op.replace_input(source, source.args[0])
            self.remove_quantize(call, op)

    def dynamic_modules(self) -> None:
        """Quantize dynamically - dequantize - reference module: nnqd and nniqd modules."""
        for call in _calls(self.program):
            kind = self.kind(call)
            if kind not in tables.DYNAMIC and kind not in tables.DYNAMIC_FUSED:
                continue
            source = _argument(call, 0)
            if call.kind != "call_module" or not _is_dequantize(source):
                continue
            quantize = source.args[0]
            if not _is_dynamic_quantize(quantize):
                continue
            if kind in tables.DYNAMIC_FUSED:
                inner, target = tables.DYNAMIC_FUSED[kind]
                if self.modules[call.target][0].kind != inner:
                    continue
            else:
                target = tables.DYNAMIC[kind]
            self.replace(call, target)
            call.replace_input(source, quantize.args[0])

    def weight_only_modules(self) -> None:
        """Embeddings: nnq modules."""
        for call in _calls(self.program):
            kind = self.kind(call)
            if call.kind == "call_module" and kind in tables.WEIGHT_ONLY:
                self.replace(call, tables.WEIGHT_ONLY[kind])

    # ---- functions

    def static_functions(self) -> None:
        """Two times dequantize - function - quantize: a quantized function and a prepack."""
        for call in _calls(self.program):
            found = self.match_dequantized(call, tables.STATIC_FUNCTIONS, (0, 1))
            if found is None:
                continue
            quantize, relu, op = found
            source, weight, *_ = op.args
            if not isinstance(source, Call) or not isinstance(weight, Call):
                raise VerifyError(f"{op.name}: input and weight must both be tensors")
            integers = weight.args[0]
            if integers.kind != "call_function" or integers.target not in (
                _QUANTIZE,
                _QUANTIZE_BY_CHANNEL,
            ):
                continue
            scale, zero_point = quantize.args[1:3]
            kwargs = dict(op.kwargs)
            if op.target == tables.LINEAR and "bias" in kwargs:
                kwargs["B"] = kwargs.pop("bias")
            packed = self.program.call(
                "call_function",
                _prepack(op, integers),
                _prepack_args(op, integers),
                kwargs,
                before=scale,
            )
            plain, with_relu = tables.STATIC_FUNCTIONS[op.target]
            if relu is not None and with_relu is None:
                raise VerifyError(
                    f"{op.name}: {op.target} with relu has no quantized form; observe the result "
                    "of the function, before the relu"
                )
            op.target = plain if relu is None else str(with_relu)
            op.set_arguments((source.args[0], packed, scale, zero_point), {})
            quantize.replace_all_uses_with(op)
            self.program.move(op, after=zero_point)
            self.program.erase(quantize)
            if relu is not None:
                self.program.erase(relu)

    def dynamic_functions(self) -> None:
        """Quantize dynamically - dequantize - linear: a dynamic function and a prepack.

        From the end, so that a linear with relu is found before the linear alone.
        """
        for call in reversed(list(self.program)):
            if call.program is None:
                continue
            op, relu = call, None
            is_relu = call.kind == "call_function" and call.target == tables.RELU_FUNCTIONS[0]
            if is_relu or self.kind(call) == tables.RELU_MODULE:
                op, relu = _tensor(call, 0), call
            if self.skipped(op) or op.kind != "call_function":
                continue
            if op.target not in tables.DYNAMIC_FUNCTIONS:
                continue
            source, weight = _argument(op, 0), _argument(op, 1)
            if not _is_dequantize(source) or not _is_dequantize(weight):
                continue
            quantize, integers = source.args[0], weight.args[0]
            if not _is_dynamic_quantize(quantize):
                continue
            x, dtype, reduce_range = quantize.args
            functions = tables.DYNAMIC_FUNCTIONS[op.target].get((dtype, integers.args[-1]))
            if functions is None or functions[1] is None:
                continue
            kwargs = dict(op.kwargs)
            given = {"B": kwargs.pop("bias")} if "bias" in kwargs else {}
            packed = self.program.call(
                "call_function",
                _prepack(op, integers),
                _prepack_args(op, integers),
                given,
                before=op,
            )
            op.target = functions[1] if relu is not None else functions[0]
            op.set_arguments((x, packed, *(() if dtype == float16 else (reduce_range,))), kwargs)
            if relu is not None:
                relu.replace_all_uses_with(op)
                self.program.erase(relu)

    def binary(self) -> None:
        """Dequantize - sum or product - quantize: a quantized function.

        torch loses keyword arguments here, torch.add's alpha among them.
        """
        for call in _calls(self.program):
            found = self.match_dequantized(call, tables.BINARY, (0, 1))
            if found is None:
                continue
            quantize, relu, op = found
            if op.kwargs.get("alpha", 1) != 1 and not reproduce("dropped-alpha", op.name):
                continue
            tensors = [arg for arg in op.args if _is_dequantize(arg)]
            args = [arg.args[0] if _is_dequantize(arg) else arg for arg in op.args]
            names = tables.BINARY if relu is None else tables.BINARY_RELU
            if op.target not in names:
                raise VerifyError(f"{op.name}: {op.target} with relu has no quantized form")
            if len(tensors) == 2:
                args += quantize.args[1:3]
            made = self.program.call(
                "call_function", names[op.target], tuple(args), after=quantize
            )
            quantize.replace_all_uses_with(made)
            for old in (quantize, *(() if relu is None else (relu,)), op):
                self.program.erase(old)

    def shapes(self) -> None:
        """Ask the quantized value for its shape."""
        for names in (("builtins.getattr",), ("shape", "size")):
            for call in _calls(self.program):
                if self.kind(call) not in names or call.kind == "call_module":
                    continue
                if call.kind == "call_function" and call.args[1] != "shape":
                    continue
                source = _argument(call, 0)
                if _is_dequantize(source):
                    call.args = (source.args[0], *call.args[1:])

    # ---- what needs no quantized weight

    def special(self) -> None:
        """Dequantize - op - quantize, or a cast to float16, for the ops in torch's lists."""
        for call in _calls(self.program):
            quantizes = call.kind == "call_function" and call.target == _QUANTIZE
            if not quantizes and not _is_cast_to_half(call):
                continue
            op = _tensor(call, 0)
            kind = self.kind(op)
            if kind not in (tables.ANYWHERE if quantizes else tables.KEEPING):
                continue
            sources = _operands(op)
            if sources is None:
                continue
            if quantizes and kind in tables.OWN_QPARAMS:
                observed = tuple(value.item() for value in self.qparams(call))
                own = observed == tables.OWN_QPARAMS[kind]
                if not own and not reproduce("fixed-qparams-ignored", op.name):
                    continue
            if quantizes and op.kind == "call_module" and kind in tables.SPECIAL:
                self.replace(op, tables.SPECIAL[kind], call)
            for source in sources:
                op.replace_input(source, source.args[0])
            qparams = call.args[1:]
            call.replace_all_uses_with(op)
            self.program.erase(call)
            if op.kind == "call_function" and kind in tables.DEFAULT_FUNCTIONS:
                self.quantized_function(op, *qparams[:2])
            else:
                for constant in qparams:
                    if isinstance(constant, Call):
                        self.program.erase(constant)

    def quantized_function(self, op: Call, scale: Call, zero_point: Call) -> None:
        """Replace a function by the one that takes scale and zero point of its result."""
        target = tables.DEFAULT_FUNCTIONS[op.target]
        dropped = tables.DROPPED_ARGUMENTS.get(target, ())
        kwargs = {key: value for key, value in op.kwargs.items() if key not in dropped}
        kwargs |= {"output_scale": scale, "output_zero_point": zero_point}
        made = self.program.call("call_function", target, op.args, kwargs, after=zero_point)
        op.replace_all_uses_with(made)
        self.program.erase(op)


def _calls(program: Program) -> Any:
    """Yield the calls as they are now, without those that are removed meanwhile."""
    return (call for call in list(program) if call.program is not None)


def _argument(call: Call, index: int) -> Any:
    if index >= len(call.args):
        raise VerifyError(
            f"{call.name}: argument {index} must be positional to be lowered, got "
            f"{len(call.args)} positional arguments"
        )
    return call.args[index]


def _tensor(call: Call, index: int) -> Call:
    found = _argument(call, index)
    if not isinstance(found, Call):
        raise VerifyError(f"{call.name}: argument {index} must be a tensor, got {found!r}")
    return found


def _is_dequantize(value: Any) -> bool:
    return isinstance(value, Call) and value.kind == "call_method" and value.target == "dequantize"


def _is_dynamic_quantize(value: Any) -> bool:
    return (
        isinstance(value, Call)
        and value.kind == "call_function"
        and value.target == _QUANTIZE_DYNAMIC
        and value.args[1] in (quint8, qint8, float16)
    )


def _is_cast_to_half(call: Call) -> bool:
    return call.kind == "call_method" and call.target == "to" and call.args[1:] == (float16,)


def _operands(op: Call) -> list[Call] | None:
    """Return the dequantized tensors that are the op's first argument; None if they are not."""
    if not op.args and not op.kwargs:
        raise VerifyError(f"{op.name}: expected an argument, got none")
    first = op.args[0] if op.args else next(iter(op.kwargs.values()))
    if not isinstance(first, Call | tuple | list):
        raise VerifyError(f"{op.name}: the first argument must be a tensor, got {first!r}")
    tensors = [first] if isinstance(first, Call) else list(first)
    return tensors if all(map(_is_dequantize, tensors)) else None


def _prepack(op: Call, integers: Call) -> str:
    """Return the function that packs the weight of a function."""
    if op.target != tables.LINEAR:
        return tables.CONV_PREPACK[op.target]
    dtype = integers.args[-1]
    if dtype not in tables.LINEAR_PREPACK:
        raise VerifyError(f"{op.name}: the weight must be qint8 or float16, got {dtype}")
    return tables.LINEAR_PREPACK[dtype]


def _prepack_args(op: Call, integers: Call) -> tuple[Any, ...]:
    """Return the weight and the other arguments of a function as its prepack takes them."""
    args = [integers, *op.args[2:]]
    if op.target in (tables.CONV_1D, tables.CONV_TRANSPOSE_1D):
        lengths = (2, 3, 4) if op.target == tables.CONV_1D else (2, 3, 4, 6)
        for i in lengths:
            if i < len(args) and isinstance(args[i], int):
                args[i] = (args[i],)
    if op.target in tables.TRANSPOSED and len(args) > 6:  # dilation before groups
        args[5], args[6] = args[6], args[5]
    return tuple(args)
