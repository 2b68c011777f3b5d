"""Folding: what packs a weight is computed once, and a constant takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refquant.fx.attributes import Attributes
from refquant.fx.pack import PREPACK, half, quantize_per_channel, quantize_per_tensor
from refquant.fx.weights import producers, run_constant
from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.module import Module, Packed
from refquant.ir.program import Call, Program, each
from refquant.ir.types import float16

_PREPACK = {f"torch.ops.quantized.{name}": function for name, function in PREPACK.items()}
_QUANTIZE: dict[str, Callable[..., Any]] = {
    "torch.quantize_per_tensor": quantize_per_tensor,
    "torch.quantize_per_channel": quantize_per_channel,
}
ORIGINAL_WEIGHTS = "original_weights_lookup"


def fold_weights(program: Program, keep_original_weights: bool = False) -> None:
    """Replace each prepack of constants by a constant, in place.

    The constant is an attribute of the model, ``<path>_packed_weight_<i>``, where the path is that
    of the module in whose forward the weight is used.

    Parameters
    ----------
    program : Program
        With calls of ``torch.ops.quantized.*_prepack``.
    keep_original_weights : bool
        Note what was packed in ``program.meta["original_weights_lookup"]``: by the constant's
        name the arrays, the largest first.

    Raises
    ------
    VerifyError
        If a weight cannot be packed, or is also used where it is not packed.
    """
    folded: dict[Call, None] = {}
    packed: dict[Call, Packed] = {}
    originals: dict[Call, list[Any]] = {}
    for call in program:
        if call.kind == "call_function" and call.target in _PREPACK:
            made_of = producers(call)
            if made_of is not None:
                packed[call] = _packed(program, call)
                originals[call] = _constants(program.root, made_of)
                folded.update(dict.fromkeys(made_of))
    attributes = Attributes(program.root)
    lookup = {}
    for call in packed:
        user = next(iter(call.users))
        path = user.owner.path if user.owner else ""
        name = attributes.add(f"{path}_packed_weight_", packed[call])
        made = program.call("get_attr", name, before=call)
        call.replace_all_uses_with(made)
        lookup[_key(name)] = originals[call]
    for call in reversed(folded):
        if call.users:
            user = next(iter(call.users))
            raise VerifyError(
                f"{call.name}: this weight is packed for one use and read by {user.name} too; "
                "set the qconfig of both uses, or of neither"
            )
        program.erase(call)
    program.keep_only_used()
    if keep_original_weights:
        program.meta[ORIGINAL_WEIGHTS] = lookup


def _packed(program: Program, call: Call) -> Packed:
    """Run a prepack."""
    try:
        args = each(call.args, lambda source: _constant(program, source))
        kwargs = each(call.kwargs, lambda source: _constant(program, source))
        kwargs = {{"B": "bias"}.get(key, key): value for key, value in kwargs.items()}
        return _PREPACK[call.target](*args, **kwargs)
    except RefquantError as error:
        raise type(error)(f"{_user(call).name}: {error}") from None
    except TypeError as error:
        reason = str(error).partition("prepack() ")[2] or str(error)
        name = call.target.rpartition(".")[2]
        raise VerifyError(
            f"{_user(call).name}: {name} {reason}; give all arguments of the function in order"
        ) from None


def _user(call: Call) -> Call:
    return next(iter(call.users), call)


def _constant(program: Program, call: Call) -> Any:
    """Compute a call that depends on no input."""
    if call.kind == "get_attr":
        return program.root.get(call.target)
    if call.kind == "call_function" and call.target in _QUANTIZE:
        args = each(call.args, lambda source: _constant(program, source))
        return _QUANTIZE[call.target](*args, **call.kwargs)
    if call.kind == "call_method" and call.target == "to" and call.args[1:] == (float16,):
        return half(_constant(program, call.args[0]))
    made_of = producers(call)
    assert made_of is not None
    return run_constant(program, made_of)


def _constants(root: Module, calls: list[Call]) -> list[Any]:
    """Return the arrays that calls read, the largest first, and None where there is but one."""
    paths = dict.fromkeys(call.target for call in calls if call.kind == "get_attr")
    found = [root.get(path) for path in sorted(paths, key=_place)]
    arrays = sorted(found, key=lambda array: -int(array.size))
    return arrays if len(arrays) > 1 else [*arrays, None]


def _place(path: str) -> tuple[bool, bool]:
    """Sort as a state_dict: what the model itself holds first, and there parameters first."""
    stem = path.rstrip("0123456789")
    return "." in path, stem.endswith(("_scale_", "_zero_point_"))


def _key(name: str) -> str:
    for character in ":/|":
        name = name.replace(character, "_")
    return name.replace(" ", "").lower()
