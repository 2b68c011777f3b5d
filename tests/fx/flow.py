"""One case through graph mode, by torch and by us, compared call for call at every stage."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import torch
from oracle import from_torch
from torch import nn
from torch.ao.quantization import quantize_fx as torch_fx

from refquant import quantize_fx as our_fx
from refquant.compare import GraphDiff, GraphRow, RunDiff, run_diff
from refquant.defects import TorchDefectWarning
from refquant.graph_module import GraphModule
from refquant.importers import from_torch_config
from refquant.importers.torch_capture import capture_graph_module
from refquant.ir.errors import RefquantError, UnsupportedError
from refquant.ir.program import Program
from refquant.ir.qtensor import QTensor, type_of
from refquant.program_diff import program_diff

Stage = Literal["fused", "prepared", "calibrated", "reference", "decomposed", "lowered"]
FORMS: tuple[Stage, ...] = ("reference", "decomposed", "lowered")
Make = Callable[[], Any]
# What our side raises on purpose; torch raises LookupError for fused parts that disagree.
REFUSALS = (RefquantError, LookupError)
# Ops of float32 whose order of summation, or whose last bit on another machine, torch does not
# promise.
FLOAT_SUMS = frozenset(
    f"aten::{name}"
    for name in (
        *("linear", "convolution", "conv_transpose", "matmul", "bmm", "mean", "sum"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
        *("conv_transpose3d", "softmax", "addmm", "group_norm", "gelu", "tanh", "stack"),
        *("instance_norm", "layer_norm", "batch_norm", "sigmoid"),
    )
)
SUMS_FLOATS = "sums floats"
_DEFECT = re.compile(r"defect of torch \(([\w-]+)\)")
# What torch raises without meaning to.
CRASHES = (AttributeError, TypeError, KeyError, IndexError, ValueError)


class CalibrationError(AssertionError):
    """torch cannot run what it prepared."""


@dataclass(frozen=True)
class Case:
    """A model and how it is quantized, all in torch's terms.

    Parameters
    ----------
    model : nn.Module
        A template: every run copies it and fills it with numbers of its own.
    inputs : tuple
        Shapes of float inputs, or callables that draw a tensor from a generator.
    qconfigs, equalization, convert_qconfigs : callable
        Make torch's mapping; ours is translated from it.
    mode : {"ptq", "qat", "fuse"}
        ``prepare_fx``, ``prepare_qat_fx``, or ``fuse_fx`` only.
    backend, prepare_custom, convert_custom : callable
        Make torch's config.
    our_prepare_custom, our_convert_custom : callable
        Ours, where it cannot be translated: classes of the user.
    remove_qconfig, keep_original_weights : bool
        As in ``convert_fx``.
    run_inputs : tuple, optional
        What the lowered model is run with, where its inputs are quantized.
    batches : int
        How many torch sees in calibration.
    fill : bool
        Whether parameters are drawn, and not taken from ``model``.
    steps : int
        Of SGD on torch's side, in training.
    engine : str
        torch's quantized engine, and our target.
    raises : mapping
        Stage at which torch raises, to what our message names; an empty text where ours does
        better and gives a result. The stages are torch's, and ``run`` of the lowered model.
    defects : collection
        Which defects of torch we warn of.
    runs : str
        Why outputs are not compared as a whole: ``SUMS_FLOATS``, or what has no kernel yet.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    qconfigs: Make = field(repr=False)
    mode: Literal["ptq", "qat", "fuse"] = "ptq"
    backend: Make | None = None
    prepare_custom: Make | None = None
    our_prepare_custom: Make | None = None
    equalization: Make | None = None
    convert_custom: Make | None = None
    our_convert_custom: Make | None = None
    convert_qconfigs: Make | None = None
    remove_qconfig: bool = True
    keep_original_weights: bool = False
    run_inputs: tuple[Any, ...] | None = None
    batches: int = 2
    fill: bool = True
    steps: int = 0
    engine: str = "fbgemm"
    raises: Mapping[str, str] = field(default_factory=dict)
    runs: str = ""
    defects: frozenset[str] = frozenset()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is compared: up to the stage at which torch fails."""
        if self.mode == "fuse":
            return ("fused",)
        for early in ("prepared", "calibrated"):
            if early in self.raises:
                return ("prepared",) if early == "prepared" else ("prepared", "calibrated")
        return ("prepared", *FORMS)


def net(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """Return a module with a ``forward``; tensors become parameters, others attributes."""
    made = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, torch.Tensor) and part.is_floating_point():
            made.register_parameter(name, nn.Parameter(part))
        else:
            setattr(made, name, part)
    return made


# ---- numbers


def filled(model: nn.Module, mode: str, exact: bool = False) -> nn.Module:
    """Return a copy with parameters and statistics of its own.

    With ``exact`` they are small integers times powers of two, and batch norms divide by powers
    of two, so that float sums are exact in any order.
    """
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)

    def draw(name: str, like: torch.Tensor) -> torch.Tensor:
        if exact:
            if name.endswith("running_var"):
                return 4.0 ** torch.randint(0, 2, like.shape, generator=generator)
            return torch.randint(-4, 5, like.shape, generator=generator) * 0.25
        if name.endswith("running_var"):
            return torch.rand(like.shape, generator=generator) + 0.5
        return torch.randn(like.shape, generator=generator) * 0.5

    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    with torch.no_grad():
        for name, value in (*made.named_parameters(), *made.named_buffers()):
            if value.is_floating_point():
                value.copy_(draw(name, value))
        for module in made.modules():
            if isinstance(module, norms) and exact:
                module.eps = 0.0
            if isinstance(module, norms) and not exact and module.affine:
                module.weight.add_(1.0)
    return made.train(mode == "qat")


def drawn(inputs: Sequence[Any], seed: int, exact: bool = False) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw(given: Any) -> torch.Tensor:
        if callable(given):
            made: torch.Tensor = given(generator)
        elif exact:
            made = torch.randint(-16, 17, given, generator=generator) * 0.125
        else:
            made = torch.randn(given, generator=generator)
        return made

    return tuple(map(draw, inputs))


def indices(high: int, *shape: int, dtype: torch.dtype = torch.long) -> Make:
    """Return what draws whole numbers below ``high``."""
    return lambda generator: torch.randint(0, high, shape, generator=generator).to(dtype)


def mask(*shape: int) -> Make:
    """Return what draws booleans."""
    return lambda generator: torch.rand(shape, generator=generator) < 0.3


def quantized(*shape: int, dtype: torch.dtype = torch.quint8) -> Make:
    """Return what draws a float tensor and quantizes it."""
    return lambda generator: torch.quantize_per_tensor(
        torch.randn(shape, generator=generator), 0.05, 60, dtype
    )


# ---- running both


@dataclass(frozen=True)
class Failure:
    """An error in place of a result."""

    error: Exception


def attempt(make: Make) -> Any:
    """Return the result, or the error as a ``Failure``."""
    try:
        return make()
    except Exception as error:
        return Failure(error)


@contextmanager
def quiet(engine: str = "fbgemm") -> Iterator[None]:
    """Run torch with one thread on one engine, and nobody's warnings."""
    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = engine
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before
        torch.set_num_threads(threads)


def _made(make: Make | None) -> Any:
    return None if make is None else make()


def _translated(make: Make | None, ours: Make | None = None) -> Any:
    if ours is not None:
        return ours()
    return None if make is None else from_torch_config(make())


@cache
def _backend(make: Make | None) -> Any:
    """Return our back-end config; there are few, and they are large."""
    return _translated(make)


class Flow:
    """A case in progress; what fails is a ``Failure``."""

    def __init__(self, case: Case, exact: bool = False) -> None:
        # What equalization learns is in no state_dict: ours observes by itself, exactly.
        self.case, self.exact = case, exact or case.equalization is not None
        self.model = copy.deepcopy(case.model).train(case.mode == "qat")
        if case.fill:
            self.model = filled(case.model, case.mode, self.exact)
        self.examples = drawn(case.inputs, 1, self.exact)
        self.converted: dict[str, tuple[Any, Any]] = {}
        self.defects: set[str] = set()

    def ours(self, make: Make) -> Any:
        """Return our result or failure; note which defects of torch we were warned of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = attempt(make)
        for warning in caught:
            if issubclass(warning.category, TorchDefectWarning):
                found = _DEFECT.search(str(warning.message))
                assert found is not None
                self.defects.add(found[1])
        return made

    def batches(self) -> list[tuple[torch.Tensor, ...]]:
        return [
            drawn(self.case.inputs, seed, self.exact) for seed in range(2, 2 + self.case.batches)
        ]

    # ---- prepare

    @cached_property
    def fused(self) -> tuple[Any, Any]:
        backend = self.case.backend
        with quiet():
            theirs = attempt(
                lambda: torch_fx.fuse_fx(copy.deepcopy(self.model), None, _made(backend))
            )
            ours = self.ours(lambda: our_fx.fuse_fx(self.model, None, _backend(backend)))
        return ours, theirs

    def _prepare(self, api: Any, model: Any, configs: Sequence[Any]) -> Any:
        qconfigs, custom, equalization, backend = configs
        if self.case.mode == "qat":
            return api.prepare_qat_fx(model, qconfigs, self.examples, custom, backend)
        return api.prepare_fx(model, qconfigs, self.examples, custom, equalization, backend)

    @cached_property
    def prepared(self) -> tuple[Any, Any]:
        """Both sides as they come from prepare."""
        case = self.case
        with quiet(case.engine):
            given = [case.qconfigs, case.prepare_custom, case.equalization, case.backend]

            def translated() -> list[Any]:
                custom = _translated(case.prepare_custom, case.our_prepare_custom)
                equalization = _translated(case.equalization)
                return [_translated(case.qconfigs), custom, equalization, _backend(case.backend)]

            ours = self.ours(lambda: self._prepare(our_fx, self.model, translated()))
            theirs = attempt(
                lambda: self._prepare(torch_fx, copy.deepcopy(self.model), [*map(_made, given)])
            )
        if isinstance(ours, GraphModule):
            ours.target = case.engine
        return ours, theirs

    @cached_property
    def fresh(self) -> Any:
        """The difference before anything was observed."""
        return self.difference(*self.prepared)

    @cached_property
    def calibrated(self) -> tuple[Any, Any]:
        """Both sides after torch has seen the batches, ours with torch's state."""
        _ = self.fresh  # before the state changes
        ours, theirs = self.prepared
        for side in self.prepared:
            if isinstance(side, Failure):
                raise AssertionError("prepare failed") from side.error
        with quiet(self.case.engine):
            theirs = attempt(lambda: self._observed(theirs))
            if isinstance(theirs, Failure) and "calibrated" not in self.case.raises:
                raise CalibrationError("torch fails in calibration") from theirs.error
            if self.case.equalization is not None:
                ours = self.ours(lambda: self._observed_by_ours(ours))
            elif not isinstance(theirs, Failure):
                ours.load_state_dict(theirs.state_dict())
                ours.eval()
            else:
                ours = self.ours(lambda: self._observed_by_ours(ours))
        return ours, theirs

    def _observed(self, model: Any) -> Any:
        trained = [p for p in model.parameters() if p.is_floating_point()]
        if self.case.steps and trained:
            optimizer = torch.optim.SGD(trained, lr=0.01)
            for step in range(self.case.steps):
                optimizer.zero_grad()
                result = model(*drawn(self.case.inputs, 10 + step, self.exact))
                loss = sum((part.float() ** 2).mean() for part in _tensors(result))
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            for batch in self.batches():
                model(*batch)
        return model.eval()

    def _observed_by_ours(self, model: GraphModule) -> GraphModule:
        for batch in self.batches():
            model(*map(from_torch, batch))
        return model.eval()

    # ---- convert

    def convert(self, form: Stage) -> tuple[Any, Any]:
        """Return both sides converted."""
        if form not in self.converted:
            ours, theirs = self.calibrated
            with quiet(self.case.engine), torch.no_grad():
                self.converted[form] = (
                    self.ours(lambda: self._convert(our_fx, ours, form)),
                    attempt(lambda: self._convert(torch_fx, copy.deepcopy(theirs), form)),
                )
        return self.converted[form]

    def _convert(self, api: Any, model: Any, form: Stage) -> Any:
        case = self.case
        if api is torch_fx:
            custom, qconfigs = _made(case.convert_custom), _made(case.convert_qconfigs)
            backend = _made(case.backend)
        else:
            custom = _translated(case.convert_custom, case.our_convert_custom)
            qconfigs, backend = _translated(case.convert_qconfigs), _backend(case.backend)
        if form == "decomposed":
            return api._convert_to_reference_decomposed_fx(model, custom, qconfigs, backend)
        if form == "reference":
            return api.convert_to_reference_fx(
                model, custom, case.remove_qconfig, qconfigs, backend
            )
        return api.convert_fx(
            model, custom, case.remove_qconfig, qconfigs, backend, case.keep_original_weights
        )

    # ---- comparing

    def difference(self, ours: Any, theirs: Any) -> Any:
        """Compare the calls, and those in standalone modules."""
        with quiet(self.case.engine):
            return compared(ours.program, theirs)

    def both(self, stage: Stage) -> tuple[Any, Any]:
        """Return what ours and torch's is at a stage, or why it failed."""
        found: tuple[Any, Any] = self.convert(stage) if stage in FORMS else getattr(self, stage)
        return found

    def check(self, stage: Stage) -> None:
        """Both sides give the same calls, or fail alike, as the case says."""
        ours, theirs = self.both(stage)
        if stage in self.case.raises:
            self.check_failure(self.case.raises[stage], ours, theirs)
            return
        for side in (ours, theirs):
            if isinstance(side, Failure):
                raise AssertionError(f"{stage} failed") from side.error
        found = self.fresh if stage == "prepared" else self.difference(ours, theirs)
        assert not found, _differences(found)
        if stage == "prepared" and "calibrated" not in self.case.raises:
            found = self.difference(*self.calibrated)
            assert not found, f"after calibration: {_differences(found)}"

    def check_alike(self, form: Stage, outputs: bool = False) -> str:
        """Compare prepare and one conversion, wherever torch gets; return how far that is."""
        ours, theirs = self.prepared
        if isinstance(theirs, Failure):
            return f"{self.both_refuse(ours, theirs)} in prepare"
        assert not self.fresh, _differences(self.fresh)
        try:
            _ = self.calibrated
        except CalibrationError:
            return "torch cannot run what it prepared"
        for wanted in {form: None, **({"lowered": None} if outputs else {})}:
            ours, theirs = self.convert(wanted)
            if isinstance(theirs, Failure):
                return f"{self.both_refuse(ours, theirs)} in convert"
            self.check(wanted)
        if not outputs:
            return "same graphs"
        with quiet(self.case.engine), torch.no_grad():
            if isinstance(attempt(lambda: theirs(*self.tensors)), Failure):
                return "torch cannot run it"
        try:
            self.check_all_but_float_sums()
        except UnsupportedError:
            return "no kernel"
        return "same outputs"

    def both_refuse(self, ours: Any, theirs: Failure) -> str:
        """Ours refuses what torch refuses; where torch crashes, ours may do better."""
        if isinstance(theirs.error, CRASHES) and not isinstance(ours, Failure):
            return "torch crashes"
        self.check_refused(ours)
        return "refused"

    def check_refused(self, ours: Any) -> None:
        """Ours refuses too, in one line."""
        assert isinstance(ours, Failure), "ours does not fail"
        if not isinstance(ours.error, REFUSALS):
            raise AssertionError("an error that says nothing") from ours.error
        assert "\n" not in str(ours.error)

    def check_failure(self, named: str, ours: Any, theirs: Any) -> None:
        assert isinstance(theirs, Failure), "torch does not fail"
        if not named:
            assert not isinstance(ours, Failure), f"does not do better: {ours}"
            return
        self.check_refused(ours)
        assert named in str(ours.error), str(ours.error)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The same for torch."""
        return drawn(self.case.run_inputs or self.case.inputs, 4, self.exact)

    @cached_property
    def arrays(self) -> list[Any]:
        """Inputs that no observer has seen."""
        return [*map(from_torch, self.tensors)]

    def run_ours(self, executor: Any = "fast") -> Any:
        """Run our lowered model."""
        with quiet(self.case.engine):
            return self.convert("lowered")[0].run(*self.arrays, executor=executor).outputs

    def check_defects(self) -> None:
        """We warned of the defects that the case says, and of no others."""
        assert self.defects == self.case.defects

    def check_outputs(self) -> None:
        """The lowered model returns what torch's does, in both executors."""
        theirs = self.convert("lowered")[1]
        with quiet(self.case.engine), torch.no_grad():
            expected = attempt(lambda: theirs(*self.tensors))
        if "run" in self.case.raises:
            self.check_failure(self.case.raises["run"], attempt(self.run_ours), expected)
            return
        if isinstance(expected, Failure):
            raise AssertionError("torch's lowered model fails") from expected.error
        for executor in ("fast", "reference"):
            if not same(self.run_ours(executor), expected):
                raise AssertionError(f"outputs differ\n{self.run_diff()}")

    def run_diff(self) -> RunDiff:
        ours, theirs = self.convert("lowered")
        if not ours.types:  # an input is quantized
            ours.types = tuple(map(type_of, self.arrays))
        with quiet(self.case.engine):
            return run_diff(ours.graph, theirs, self.arrays, ours.target)

    def check_all_but_float_sums(self) -> None:
        """Every node returns what torch's does, given torch's operands, or is a float sum."""
        report, nodes = self.run_diff(), self.convert("lowered")[0].graph.nodes
        origins = {v.name: n.origin for n in nodes for v in n.outputs}
        sums = {n.origin for n in nodes if n.op in FLOAT_SUMS}
        for row in report.rows:
            near = origins[row.name] in sums and row.cause == "float order or last bit"
            assert row.equal or row.inherited or near, str(row)

    def check_own_calibration(self, rounds: bool = False, convert: bool = True) -> None:
        """Observers that we ran have the state of those that torch ran, and convert to the same.

        With ``rounds``, only statistics may differ, of what is behind a sum of rounded values.
        """
        ours, theirs = self.prepared
        assert not self.fresh, _differences(self.fresh)
        with quiet(self.case.engine):
            self._observed_by_ours(ours)
            self._observed(theirs)
            found = self.difference(ours, theirs)
            if rounds:
                where = [line for row in found.differences for line in row.differences]
                assert all(line.startswith("module state m") for line in where)
                return
            assert not found, _differences(found)
            if not convert:
                return
            found = self.difference(
                self._convert(our_fx, ours, "lowered"),
                self._convert(torch_fx, copy.deepcopy(theirs), "lowered"),
            )
            assert not found, _differences(found)


def compared(ours: Program, theirs: Any) -> GraphDiff:
    """Compare a program with a GraphModule, also in the GraphModules in it."""
    captured = capture_graph_module(theirs)
    rows: list[GraphRow] = []
    for path, inner in theirs.named_children():
        if isinstance(inner, torch.fx.GraphModule):
            captured.root.get(path).kind = "torch.fx.GraphModule"
            mine = ours.root.get(path)
            rows += compared(mine.program, inner).rows
    return GraphDiff((*program_diff(ours, captured).rows, *rows))


def _differences(found: Any) -> str:
    lines = [f"{len(found.differences)} of {len(found.rows)} rows differ"]
    for row in found.differences[:8]:
        lines += [f"  ours  {row.ours[:150]}", f"  torch {row.torch[:150]}"]
        lines += [f"        {difference}" for difference in row.differences[:6]]
    return "\n".join(lines)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])


def same(ours: Any, theirs: Any) -> bool:
    """Whether two returned values have the same structure and bits."""
    if isinstance(theirs, torch.Tensor):
        ours_type, theirs = type(ours), from_torch(theirs)
        if isinstance(theirs, QTensor):
            return ours_type is QTensor and (
                (ours.dtype, ours.axis) == (theirs.dtype, theirs.axis)
                and np.array_equal(ours.scale, theirs.scale)
                and np.array_equal(ours.zero_point, theirs.zero_point)
                and np.array_equal(ours.int_repr, theirs.int_repr)
            )
        return (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) and np.array_equal(
            ours, theirs, equal_nan=theirs.dtype.kind == "f"
        )
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, tuple | list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs) or (isinstance(theirs, float) and math.isnan(theirs))
