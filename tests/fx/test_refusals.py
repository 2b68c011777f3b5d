"""What graph mode refuses, and what it keeps besides the graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import flow
import numpy as np
import pytest
import qconfigs
import torch
from torch import nn
from torch.ao.quantization import quantize_fx as torch_fx

from refquant import backend_config, quantize_fx
from refquant.fx.custom_config import ConvertCustomConfig, FuseCustomConfig, PrepareCustomConfig
from refquant.graph_module import GraphModule
from refquant.importers import from_fx, from_torch_config
from refquant.importers.torch_capture import capture_graph_module
from refquant.ir import parse
from refquant.ir.errors import RefquantError, VerifyError
from refquant.program_diff import program_diff
from refquant.qconfig_mapping import QConfigMapping, get_default_qconfig_mapping

X = (np.ones((3, 8), np.float32),)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def mapping() -> QConfigMapping:
    found: QConfigMapping = from_torch_config(qconfigs.per_tensor())
    return found


def prepared() -> GraphModule:
    made = quantize_fx.prepare_fx(model(), mapping(), X)
    made(*X)
    return made


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "a model of no kind": ("got int", lambda: quantize_fx.prepare_fx(3, mapping(), X)),
    "a function": ("got function", lambda: quantize_fx.fuse_fx(lambda x: x)),
    "a model that cannot be traced": (
        "DataDependent cannot be traced",
        lambda: quantize_fx.prepare_fx(DataDependent(), mapping(), X),
    ),
    "a graph from a text": (
        "holds no data",
        lambda: quantize_fx.prepare_fx(parse(str(from_fx(model(), X))), mapping(), X),
    ),
    "prepared twice": (
        "prepared already",
        lambda: quantize_fx.prepare_fx(prepared(), mapping(), X),
    ),
    "no mapping": ("got None", lambda: quantize_fx.prepare_fx(model(), None, X)),  # type: ignore[arg-type]
    "a mapping of torch": (
        "from_torch_config",
        lambda: quantize_fx.prepare_fx(model(), qconfigs.per_tensor(), X),
    ),
    "a qconfig as the mapping": (
        "QConfigMapping",
        lambda: quantize_fx.prepare_fx(model(), mapping().global_qconfig, X),
    ),
    "a back-end of torch": (
        "from_torch_config",
        lambda: quantize_fx.prepare_fx(
            model(),
            mapping(),
            X,
            backend_config=torch.ao.quantization.backend_config.get_native_backend_config(),
        ),
    ),
    "a back-end's name": (
        "backend_config must be a BackendConfig",
        lambda: quantize_fx.prepare_fx(model(), mapping(), X, backend_config="fbgemm"),  # type: ignore[arg-type]
    ),
    "a custom config of another step": (
        "prepare_custom_config must be a PrepareCustomConfig",
        lambda: quantize_fx.prepare_fx(model(), mapping(), X, ConvertCustomConfig()),  # type: ignore[arg-type]
    ),
    "a list of names as the custom config": (
        "got list",
        lambda: quantize_fx.prepare_fx(model(), mapping(), X, ["0"]),  # type: ignore[arg-type]
    ),
    "an equalization config of a wrong type": (
        "_equalization_config must be",
        lambda: quantize_fx.prepare_fx(model(), mapping(), X, _equalization_config=3),  # type: ignore[arg-type]
    ),
    "an unknown engine": ("nvidia", lambda: get_default_qconfig_mapping("nvidia")),
    "an unknown version": ("7", lambda: get_default_qconfig_mapping("fbgemm", 7)),
    "convert of a torch module": (
        "must be a GraphModule from prepare_fx, got Sequential",
        lambda: quantize_fx.convert_fx(model()),  # type: ignore[arg-type]
    ),
    "convert of a graph": (
        "call prepare_fx first",
        lambda: quantize_fx.convert_to_reference_fx(from_fx(model(), X)),
    ),
    "convert before prepare": (
        "call prepare_fx first",
        lambda: quantize_fx.convert_fx(quantize_fx.fuse_fx(model())),
    ),
    "convert twice": (
        "call prepare_fx first",
        lambda: quantize_fx.convert_fx(quantize_fx.convert_fx(prepared())),
    ),
    "convert, a custom config of another step": (
        "convert_custom_config must be a ConvertCustomConfig",
        lambda: quantize_fx.convert_fx(prepared(), PrepareCustomConfig()),  # type: ignore[arg-type]
    ),
    "convert, another mapping": (
        "expected the global qconfig of prepare",
        lambda: quantize_fx.convert_fx(prepared(), qconfig_mapping=QConfigMapping()),
    ),
    "convert, a mapping of torch": (
        "from_torch_config",
        lambda: quantize_fx.convert_fx(prepared(), qconfig_mapping=qconfigs.per_tensor()),
    ),
    "a state of another model": (
        "state_dict has no 0.0.weight",
        lambda: prepared().load_state_dict({"0.weight": np.zeros((4, 8), np.float32)}),
    ),
    "a state of another shape": (
        "shape",
        lambda: prepared().load_state_dict(
            {
                k: np.zeros((9, *np.shape(v)), np.float32)
                for k, v in prepared().state_dict().items()
            }
        ),
    ),
    "calling with an input too many": ("inputs", lambda: prepared()(X[0], X[0])),
    "calling with another dtype": ("got float32", lambda: prepared()(X[0].astype(np.float64))),
    "calling with another shape": ("8, got 5", lambda: prepared()(X[0][:, :5])),
    "fusing in training mode": (
        "0",
        lambda: quantize_fx.fuse_fx(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)).train()),
    ),
    "training without statistics": (
        "0",
        lambda: quantize_fx.prepare_qat_fx(
            nn.Sequential(
                nn.Conv1d(8, 4, 1), nn.BatchNorm1d(4, track_running_stats=False)
            ).train(),
            from_torch_config(qconfigs.qat()),
            (np.ones((2, 8, 3), np.float32),),
        ),
    ),
    "a standalone module in an imported graph": (
        "must stay one call",
        lambda: quantize_fx.prepare_fx(
            from_fx(nn.Sequential(model()), X),
            mapping(),
            None,
            PrepareCustomConfig().set_standalone_module_name("0", None, (), None, None),
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_that_says_why(name: str) -> None:
    named, call = REFUSED[name]
    with flow.quiet(), pytest.raises(RefquantError) as caught:
        call()
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torch_refuses_the_same_calls() -> None:
    """Our errors are also of the classes that torch raises."""
    with flow.quiet():
        theirs = torch_fx.prepare_fx(
            copy.deepcopy(model()), qconfigs.per_tensor(), (torch.ones(3, 8),)
        )
        calls: list[tuple[type[Exception], Callable[[], Any], Callable[[], Any]]] = [
            (
                ValueError,
                lambda: torch_fx.convert_fx(model()),
                lambda: quantize_fx.convert_fx(model()),  # type: ignore[arg-type]
            ),
            (
                AssertionError,
                lambda: torch_fx.convert_fx(torch_fx.fuse_fx(model())),
                lambda: quantize_fx.convert_fx(quantize_fx.fuse_fx(model())),
            ),
            (
                AssertionError,
                lambda: torch_fx.convert_fx(
                    theirs, qconfig_mapping=torch.ao.quantization.QConfigMapping()
                ),
                lambda: quantize_fx.convert_fx(prepared(), qconfig_mapping=QConfigMapping()),
            ),
            (
                AssertionError,
                lambda: torch.ao.quantization.get_default_qconfig_mapping("nvidia"),
                lambda: get_default_qconfig_mapping("nvidia"),
            ),
        ]
        for kind, of_torch, of_ours in calls:
            for call in (of_torch, of_ours):
                with pytest.raises(kind):
                    call()


# ---- dictionaries


def test_dictionaries_warn_and_give_the_same() -> None:
    plain = {"": mapping().global_qconfig}
    custom = {"preserved_attributes": ["training"]}
    native = backend_config.get_native_backend_config().to_dict()
    for given, what in (
        ({"qconfig_mapping": plain}, "qconfig_mapping"),
        ({"prepare_custom_config": custom}, "prepare_custom_config"),
        ({"backend_config": native}, "backend_config"),
    ):
        arguments: dict[str, Any] = {"qconfig_mapping": QConfigMapping.from_dict(plain), **given}
        with pytest.warns(FutureWarning, match=what):
            made = quantize_fx.prepare_fx(model(), example_inputs=X, **arguments)
        expected = quantize_fx.prepare_fx(model(), QConfigMapping.from_dict(plain), X)
        assert not program_diff(made.program, expected.program)
    with pytest.warns(FutureWarning, match="convert_custom_config"):
        quantize_fx.convert_fx(prepared(), {"preserved_attributes": []})
    with pytest.warns(FutureWarning, match="fuse_custom_config"):
        quantize_fx.fuse_fx(model(), {"preserved_attributes": []})


def test_entries_that_match_nothing_warn_with_the_nearest_name() -> None:
    wrong = mapping().set_module_name("00", None)
    with pytest.warns(UserWarning, match="'00' matches no module"):
        quantize_fx.prepare_fx(model(), wrong, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_fx.prepare_fx(model(), mapping().set_module_name("0", None), X)


# ---- what is kept


class Versioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.version, self.notes = nn.Linear(8, 4), 3, {"author": ["x"]}
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


KEPT = ["version", "notes", "absent"]


@pytest.mark.parametrize("api", ["ours", "torch"])
def test_preserved_attributes(api: str) -> None:
    """In each step those that its config names and the model has; copies keep them."""
    with flow.quiet():
        if api == "ours":
            step: Any = quantize_fx
            configs: list[Any] = [FuseCustomConfig, PrepareCustomConfig, ConvertCustomConfig]
            given, inputs = mapping(), X
        else:
            from torch.ao.quantization.fx import custom_config as of_torch

            step, given = torch_fx, qconfigs.per_tensor()
            configs = [
                of_torch.FuseCustomConfig,
                of_torch.PrepareCustomConfig,
                of_torch.ConvertCustomConfig,
            ]
            inputs = (torch.ones(3, 8),)
        fuse, prepare, convert = (kind().set_preserved_attributes(KEPT) for kind in configs)
        made = step.fuse_fx(Versioned().eval(), fuse)
        assert (made.version, made.notes, hasattr(made, "absent")) == (3, {"author": ["x"]}, False)
        made = step.prepare_fx(Versioned().eval(), given, inputs, prepare)
        assert copy.deepcopy(made).notes == {"author": ["x"]}
        made(*inputs)
        assert not hasattr(step.convert_fx(copy.deepcopy(made)), "version")
        for how in (step.convert_fx, step.convert_to_reference_fx):
            converted = how(copy.deepcopy(made), convert)
            assert copy.deepcopy(converted).version == 3


def test_original_weights() -> None:
    """Float weights that were folded stay reachable under the name of the packed ones."""
    given = flow.net(
        lambda m, x: torch.nn.functional.linear(x, m.weight, m.bias),
        weight=torch.randn(4, 8),
        bias=torch.randn(4),
    ).eval()
    with flow.quiet():
        theirs = torch_fx.prepare_fx(
            copy.deepcopy(given), qconfigs.per_tensor(), (torch.ones(3, 8),)
        )
        theirs(torch.ones(3, 8))
        theirs = torch_fx.convert_fx(theirs, keep_original_weights=True)
        ours = quantize_fx.prepare_fx(given, mapping(), X)
        ours(*X)
        kept = quantize_fx.convert_fx(ours, keep_original_weights=True)
        plain = quantize_fx.convert_fx(ours)
        assert not program_diff(kept.program, capture_graph_module(theirs))
    expected = theirs.original_weights_lookup
    assert kept.original_weights_lookup.keys() == expected.keys()
    for name, values in expected.items():
        for mine, tensor in zip(kept.original_weights_lookup[name], values, strict=True):
            assert (mine is None) == (tensor is None)
            if tensor is not None:
                np.testing.assert_array_equal(mine, tensor.detach().numpy())
    assert not hasattr(plain, "original_weights_lookup")


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("form", ["convert_fx", "convert_to_reference_fx"])
def test_qconfigs_are_removed_or_kept(form: str, remove: bool) -> None:
    """The comparison of programs lets a qconfig be on one side only; here it must be on both."""
    with flow.quiet():
        theirs = torch_fx.prepare_fx(
            copy.deepcopy(model()), qconfigs.per_tensor(), (torch.ones(3, 8),)
        )
        theirs(torch.ones(3, 8))
        theirs = getattr(torch_fx, form)(theirs, _remove_qconfig=remove)
    ours = getattr(quantize_fx, form)(prepared(), _remove_qconfig=remove)

    def having(root: Any) -> set[str]:
        return {path for path, part in root.named_modules() if "qconfig" in part.config}

    assert having(ours.program.root) == having(capture_graph_module(theirs).root)
    if form == "convert_to_reference_fx":  # lowered modules are new and have none
        assert bool(having(ours.program.root)) is not remove


def test_nothing_given_is_changed() -> None:
    given = model()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    config, wanted = mapping(), str(mapping())
    made = quantize_fx.prepare_fx(given, config, X)
    made(*X)
    program = str(made.program)
    for how in (quantize_fx.convert_fx, quantize_fx.convert_to_reference_fx):
        how(made)
        assert str(made.program) == program
    assert str(config) == wanted
    assert [type(part) for part in given] == [nn.Linear, nn.ReLU, nn.Linear]
    assert not hasattr(given[0], "qconfig")
    for name, value in given.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_graph_is_prepared_as_its_torch_module() -> None:
    imported = from_fx(model(), X)
    made = quantize_fx.prepare_fx(imported, mapping(), None)
    expected = quantize_fx.prepare_fx(model(), mapping(), X)
    assert not program_diff(made.program, expected.program)
    np.testing.assert_array_equal(made(*X), expected(*X))


def test_a_state_is_taken_over_whole_or_not_at_all() -> None:
    made = prepared()
    before = made.state_dict()
    other, partial = made.state_dict(), made.state_dict()
    for state in (other, partial):
        for key, value in state.items():
            state[key] = value + np.ones((), value.dtype)
    observed = next(key for key in partial if key.endswith("max_val"))
    del partial[observed]
    with pytest.raises(VerifyError, match=observed.partition(".")[0]):
        made.load_state_dict(partial)
    for key, value in made.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    made.load_state_dict(other)
    for key, value in made.state_dict().items():
        np.testing.assert_array_equal(value, other[key])
